"""The SQL store on PostgreSQL, through SQLAlchemy and asyncpg."""
