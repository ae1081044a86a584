"""The configuration: where each value comes from, and what each problem says."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import attrs
import pytest

from converge.errors import ConfigError, SecretOnCommandLine, UnknownSetting
from converge.plugins import PluginHost
from converge.runtime.config.config import KEYS, Config, check_options, load, needing_transport
from converge.runtime.config.fields import AgentGroup
from converge.runtime.config.node_settings import NodeArguments, NodeSettings


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, where `converge.toml` lies."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def of(toml: str = "", *, flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """The configuration of these three sources."""
    Path("converge.toml").write_text(toml)
    return load("converge.toml", flags=flags, environ=environ or {})


def problems(toml: str = "", **sources: Any) -> list[str]:
    """What is wrong with these sources."""
    with pytest.raises(ConfigError) as raised:
        of(toml, **sources)
    assert str(raised.value) == "\n".join(raised.value.problems)
    return list(raised.value.problems)


def test_without_any_source_all_is_at_its_default() -> None:
    config = load(environ={})
    assert config == Config()
    assert set(config.origins) == set(KEYS)
    assert set(config.origins.values()) == {"default"}


def test_flags_win_over_the_environment_over_the_file_over_defaults() -> None:
    toml = 'lease_sec = 1.0\ngrace_sec = 1\npoll_sec = 1.5\nplugins = ["a", "b"]'
    environ = {"CONVERGE_LEASE_SEC": "2", "CONVERGE_GRACE_SEC": "2.5", "CONVERGE_PLUGINS": "c, d"}
    config = of(toml, flags={"lease_sec": 3.0, "grace_sec": None, "plugins": ("e",)}, environ=environ)
    assert (config.lease_sec, config.grace_sec, config.poll_sec, config.max_connections) == (3.0, 2.5, 1.5, 1_000)
    assert config.plugins == ("e",), "lists replace, they do not add up"
    origins = [config.origins[key] for key in ("lease_sec", "grace_sec", "poll_sec", "max_connections", "plugins")]
    assert origins == ["--lease-sec", "CONVERGE_GRACE_SEC", "converge.toml", "default", "--plugin"]


def test_an_unknown_key_suggests_the_nearest() -> None:
    with pytest.raises(UnknownSetting) as raised:
        of("lease_secs = 3")
    assert str(raised.value) == 'converge.toml: lease_secs: unknown key; did you mean "lease_sec"?'


def test_all_problems_are_told_at_once_each_with_its_place() -> None:
    toml = (
        'lease_secs = 1\nlease_sec = "x"\ngrace_sec = -1\npool_id = "a b"\nlog_level = "loud"\nplugins = '
        '"redis"\n[retention]\nfailed_sec = '
        "true"
    )
    found = problems(
        toml,
        environ={"CONVERGE_POLL_SEC": "often", "CONVERGE_POOL": "x", "CONVERGE_RETENTION": "3600"},
        flags={"advertise": "here"},
    )
    assert found == [
        'converge.toml: lease_secs: unknown key; did you mean "lease_sec"?',
        "converge.toml: plugins: 'redis' is not allowed; expected a list, each item text (plugins to load: NAME, "
        "module:attribute, or no:NAME to refuse one)",
        "converge.toml: lease_sec: 'x' is not allowed; expected a number (how long a process may be away, in s)",
        "converge.toml: grace_sec: -1 is not allowed; expected 0 to 3,600 (how long tasks may take to end at a stop, "
        "in s)",
        "converge.toml: pool_id: 'a b' is not allowed; expected 1 to 64 characters of A-Z a-z 0-9 . _ : - (the pool "
        "that they join)",
        "converge.toml: log_level: 'loud' is not allowed; expected one of debug, info, warning, error (the least "
        "level that is logged)",
        "converge.toml: retention.failed_sec: True is not allowed; expected a number (failed and cancelled tasks, in "
        "s)",
        'CONVERGE_POOL: unknown variable; did you mean "CONVERGE_POOL_ID"?',
        "CONVERGE_RETENTION: a table can be set in the file only",
        "CONVERGE_POLL_SEC: 'often' is not allowed; expected a number (how often to look without a wake-up, in s)",
        "--advertise: 'here' is not allowed; expected HOST:PORT, [IPV6]:PORT, a URL for each transport, or none "
        "(where others reach this node; none: only over connections that it makes itself)",
    ]


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ('require_tls = "false"', "true or false"),
        ('agents = "3"', "an integer"),
        ("store = 3", "text"),
        ("agents = 1.5", "an integer"),
        ("agents = true", "an integer"),
        ("lease_sec = inf", "a number"),
        ("retention = 3", "a table of settings"),
        ("options = 3", "a table"),
    ],
)
def test_a_value_of_another_type_is_refused_not_converted(toml: str, expected: str) -> None:
    (problem,) = problems(toml)
    assert f"is not allowed; expected {expected}" in problem


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("Yes", True), ("false", False), ("0", False), ("no", False)]
)
def test_a_variable_is_read_by_the_type_of_its_key(text: str, value: bool) -> None:
    environ = {
        "CONVERGE_TRANSPORT": "tcp://h:1",
        "CONVERGE_REQUIRE_TLS": text,
        "CONVERGE_PLUGINS": "",
        "CONVERGE_NETWORK": "1",
    }
    environ |= {"CONVERGE_AGENTS": "7", "CONVERGE_LEASE_SEC": "2"}
    config = load(environ=environ)
    assert (config.require_tls, config.agents, config.lease_sec, config.plugins, config.network) == (
        value,
        7,
        2.0,
        (),
        "1",
    )


def test_variables_that_kubernetes_makes_for_a_service_named_converge_are_left_alone() -> None:
    environ = {
        "CONVERGE_SERVICE_HOST": "10.0.0.1",
        "CONVERGE_SERVICE_PORT": "7000",
        "CONVERGE_PORT": "tcp://10.0.0.1:7000",
        "CONVERGE_PORT_7000_TCP_ADDR": "10.0.0.1",
    }
    assert load(environ=environ).port == 0


def test_a_variable_with_the_password_of_an_installed_plugin_is_the_plugins_own() -> None:
    assert load(environ={"CONVERGE_REDIS_PASSWORD": "geheim"}) == Config()
    with pytest.raises(
        UnknownSetting, match=r'^CONVERGE_REDS_PASSWORD: unknown variable; did you mean "CONVERGE_REDIS_PASSWORD"\?$'
    ) as raised:
        load(environ={"CONVERGE_REDS_PASSWORD": "geheim"})
    assert "geheim" not in str(raised.value)


MIXED = """
pool_id = "docs"
[[agents]]
type = "m:A"
count = 3
[[agents]]
type = "m:B"
pool_id = "mail"
capabilities = ["read"]
topics = ["post"]
concurrency = 4
"""


def test_a_list_of_agents_is_several_classes_each_with_what_it_has_of_its_own() -> None:
    config = of(MIXED)
    assert config.groups == (
        AgentGroup(type="m:A", count=3, pool_id="docs"),
        AgentGroup(type="m:B", pool_id="mail", capabilities=("read",), topics=("post",), concurrency=4),
    )


def test_a_number_of_agents_is_one_group_of_the_one_class() -> None:
    assert of('agent = "m:A"\nagents = 7\npool_id = "p"').groups == (AgentGroup(type="m:A", count=7, pool_id="p"),)
    assert of("agents = 7").groups == ()


def test_a_number_on_the_command_line_replaces_the_list_of_the_file() -> None:
    assert of(MIXED, flags={"agent": "m:C", "agents": 2}).groups == (AgentGroup(type="m:C", count=2, pool_id="docs"),)


def test_every_problem_of_a_list_of_agents_names_its_entry() -> None:
    toml = '[[agents]]\ntype = "m:A"\ncount = 0\ncapabilities = ["a b"]\n[[agents]]\ntyp = "m:B"\nconcurrency = "3"'
    assert problems(toml) == [
        "converge.toml: agents[0].count: 0 is not allowed; expected 1 to 100,000 (how many of them this process runs)",
        "converge.toml: agents[0].capabilities: ['a b'] is not allowed; expected 1 to 64 characters of A-Z a-z 0-9 . "
        "_ : - (what they can do)",
        'converge.toml: agents[1].typ: unknown key; did you mean "type"?',
        "converge.toml: agents[1].type: is missing; expected text (the agents' class, as module:Class)",
        "converge.toml: agents[1].concurrency: '3' is not allowed; expected an integer (tasks that each works on at a "
        "time)",
    ]
    assert problems("agents = []")[0].startswith("converge.toml: agents: [] is not allowed; expected 1 to 100 entries")


def test_one_class_beside_a_list_of_classes_is_refused() -> None:
    (problem,) = problems(MIXED, flags={"agent": "m:C"})
    assert problem == "AGENT: counts only where agents is a number; each entry of a list names its type"


@pytest.mark.parametrize("key", ["store", "transport"])
def test_a_password_on_the_command_line_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(
        SecretOnCommandLine, match=f"^--{key} redis://u:\\*\\*\\*@h/0: .*CONVERGE_{key.upper()}"
    ) as raised:
        load(environ={}, flags={key: "redis://u:geheim@h/0"})
    assert "geheim" not in str(raised.value)


def test_a_password_in_the_environment_or_a_file_is_accepted_and_not_shown() -> None:
    url = "redis://u:geheim@h/0"
    for config in (of(f'store = "{url}"\n[options.redis]\nsecret = "geheim"'), load(environ={"CONVERGE_STORE": url})):
        assert config.store == url
        assert "geheim" not in repr(config)


def test_a_transport_is_a_url_or_a_name_with_host_and_port() -> None:
    assert load(environ={}).transport_url == ""
    assert load(environ={}, flags={"transport": "tcp://0.0.0.0:7000"}).transport_url == "tcp://0.0.0.0:7000"
    assert load(environ={}, flags={"transport": "tcp", "host": "::1", "port": 7000}).transport_url == "tcp://[::1]:7000"
    assert problems(flags={"transport": "tcp"}) == [
        'host: is missing; transport "tcp" is a name, so host and port say where to listen'
    ]
    (problem,) = problems(flags={"transport": "tcp://h:1", "port": 3})
    assert problem.startswith("--port: counts only where transport is a name")


def test_what_needs_a_transport_is_told_of_a_node_that_has_none() -> None:
    flags = {"transport": "tcp://0.0.0.0:7000", "require_tls": True, "advertise": "h:7000"}
    assert needing_transport(load(environ={}, flags=flags)) == []
    assert [problem.path for problem in needing_transport(of('require_tls = true\nadvertise = "h:7000"'))] == [
        "converge.toml: require_tls",
        "converge.toml: advertise",
    ]


def test_stall_sec_follows_the_lease_where_nobody_sets_it() -> None:
    assert load(environ={}, flags={"lease_sec": 30.0}).stall_sec == 300.0
    (problem,) = problems("lease_sec = 30\nstall_sec = 20")
    assert problem == "converge.toml: stall_sec: 20 is not allowed; expected at least lease_sec, 30"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [("c.toml", "a = ", "Invalid value"), ("c.toml", "\udcff", ""), ("gone.toml", None, "No such file")],
)
def test_a_file_that_cannot_be_read_says_why(name: str, text: str | None, reason: str) -> None:
    if text is not None:
        Path(name).write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError, match=f"^{name}: cannot be read: .*{reason}"):
        load(name, environ={})


def test_yaml_is_read_where_its_library_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("c.yaml").write_text("agents: 3")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigError, match=r"^c.yaml: reading YAML needs its library; pip install pyyaml"):
        load("c.yaml", environ={})
    library = types.ModuleType("yaml")
    library.safe_load = lambda text: dict([text.split(": ")]) | {"agents": 3}  # type: ignore[attr-defined]  # a library's stand-in
    monkeypatch.setitem(sys.modules, "yaml", library)
    assert load("c.yaml", environ={}).agents == 3


def test_options_of_an_unknown_backend_name_the_nearest() -> None:
    config = of("[options.rediss]\nlimit = 3\n[options.tcp]\nbacklog = 3")
    assert config.options == {"rediss": {"limit": 3}, "tcp": {"backlog": 3}}
    with pytest.raises(UnknownSetting, match=r'^converge.toml: options.rediss: unknown key; did you mean "redis"\?$'):
        check_options(config, PluginHost())
    check_options(attrs.evolve(config, options={"tcp": {}}), PluginHost())


@pytest.mark.parametrize("name", ["sql", "mysql", "sqlite"])
def test_options_of_each_backend_of_a_plugin_are_known_before_it_is_loaded(name: str) -> None:
    check_options(of(f"[options.{name}]\nconnections = 3"), PluginHost())


def test_the_arguments_of_a_node_for_type_checkers_are_its_settings() -> None:
    assert set(get_type_hints(NodeArguments)) == {field.name for field in attrs.fields(NodeSettings)} - {"store"}


@pytest.mark.parametrize(
    ("key", "value"), [("network", "a b"), ("lease_sec", 0.1), ("advertise", "a b"), ("require_durability", "D9")]
)
def test_a_node_and_the_configuration_refuse_the_same_values_with_the_same_words(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as of_node:
        NodeSettings.of("memory:", {key: value})
    with pytest.raises(ConfigError) as of_file:
        load(flags={key: value, "transport": "local:"}, environ={})
    assert (
        str(of_node.value).partition(" is not allowed")[2] == str(of_file.value).partition(" is not allowed")[2] != ""
    )
