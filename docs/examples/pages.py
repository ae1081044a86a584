"""Print a task for each page under a folder, one JSON object a line, as `converge run --submit` and `converge submit`
read them.

python docs/examples/pages.py docs | converge run docs.examples.wordcount:WordCounter --pool docs --submit - --drain
"""

import json
import sys
from pathlib import Path

for path in sorted(Path(sys.argv[1]).rglob("*.md")):
    if any(part.startswith(".") for part in path.parts):
        continue  # what tools leave behind is no page
    inputs = {"path": str(path), "text": path.read_text(encoding="utf-8")}
    print(json.dumps({"pool_id": "docs", "required_capabilities": ["count-words"], "inputs": inputs}))
