"""The data set of the comparisons: a plain table, as pgbench has it, and a hypertable in chunks."""

DATABASE = "bench"
ROWS_OF_SCALE = 100_000

SCRIPT = """
CREATE EXTENSION timescaledb;
CREATE TABLE accounts (aid int NOT NULL, bid int, abalance int, filler char(84));
INSERT INTO accounts SELECT n, n / 100000, 0, '' FROM generate_series(1, {accounts}) n;
ALTER TABLE accounts ADD PRIMARY KEY (aid);
CREATE TABLE events (at timestamptz NOT NULL, device int NOT NULL, kind text NOT NULL, value double precision, payload text);
SELECT create_hypertable('events', 'at', chunk_time_interval => interval '1 day');
INSERT INTO events SELECT timestamptz '2026-01-01 UTC' + n * (interval '1 day' * {days} / {events}), (n::bigint * 7919 % 5000)::int,
    (ARRAY['login', 'logout', 'kill', 'death', 'purchase', 'level up'])[1 + n % 6], sqrt(n) * 1.1 / 7, md5((n / 3)::text)
FROM generate_series(0, {events} - 1) n;
CREATE INDEX ON events (device, at DESC);
VACUUM (FREEZE, ANALYZE);
CHECKPOINT;
"""


def add_arguments(parser):
    parser.add_argument("--scale", type=int, default=60, help="rows of the plain table, in 100,000 (as pgbench has it)")
    parser.add_argument("--events", type=int, default=10_000_000, help="rows of the hypertable")
    parser.add_argument("--days", type=int, default=90, help="chunks of the hypertable")


def load(server, options):
    """Makes the database and fills it."""
    server.psql("postgres", f"CREATE DATABASE {DATABASE}")
    server.psql(DATABASE, SCRIPT.format(accounts=options.scale * ROWS_OF_SCALE, events=options.events, days=options.days))


def described(options):
    return (f"{options.scale * ROWS_OF_SCALE:,} rows of a plain table, {options.events:,} rows of a hypertable in {options.days} chunks")
