"""Reads Assay as a Python program would: with psycopg 3, over PostgreSQL's protocol.

Usage: psycopg_client.py HOST PORT USER PASSWORD CA_FILE

Guards what drivers count on and a look at the server's code does not show: that encryption and
passwords are insisted on, that values keep their types in text and in binary, that a cursor gives
every row once, that each refusal has PostgreSQL's code and leaves the connection usable, that
statements end when they should, and that nothing said in one connection is heard in another.

Every check runs, whatever others find. Prints a line for each, and exits with 1 if any failed.
Expects an encrypted server with users, tables of mentions with some rows in gold, and a source that
has been read to its end.
"""

import datetime
import sys
import threading
import time
import traceback
from contextlib import contextmanager

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

RELATIONS = set("accuracy bronze gold mention_sentiment rejects scores silver users".split())
VIEWS = set(f"accuracy_by_{key}" for key in ("day", "label", "mention", "model")) | {"model_agreement"}

# So long that it ends only because it is made to, and yields no row before.
ENDLESS = "select count(*) from generate_series(1, 1000000000)"

# A statement must have ended so many seconds after it was told to.
PATIENCE = 5

READ_ONLY, NO_PRIVILEGE = "25006", "42501"
REFUSED = {
    "drop table gold": READ_ONLY,
    "insert into gold select * from gold": READ_ONLY,
    "update gold set mention = 'x'": READ_ONLY,
    "delete from gold": READ_ONLY,
    "truncate gold": READ_ONLY,
    "alter table gold add column more int": READ_ONLY,
    "create table more (a int)": READ_ONLY,
    "create table more as select * from gold": READ_ONLY,
    "create view more as select * from gold": READ_ONLY,
    "select * into more from gold": READ_ONLY,
    "declare parts cursor for select * into others from gold": READ_ONLY,
    "explain analyze delete from gold": READ_ONLY,
    "copy gold to '/tmp/gold.csv'": READ_ONLY,
    "copy gold from stdin": READ_ONLY,
    "set datafusion.execution.batch_size = 1": NO_PRIVILEGE,
}
MISTAKEN = {
    "select * from nowhere": "42P01",
    "select nothing from gold": "42703",
    "selec 1": "42601",
    "select no_function(1)": "42883",
}

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


class Server:
    """Where to connect, and as whom."""

    def __init__(self, host, port, user, password, authority):
        self.parameters = {
            "host": host,
            "port": port,
            "user": user,
            "password": password,
            "dbname": "assay",
            "sslmode": "verify-full",
            "sslrootcert": authority,
            "connect_timeout": 10,
        }

    def connect(self, **others):
        return psycopg.connect(**{"autocommit": True, **self.parameters, **others})


def same(found, expected):
    assert found == expected, f"found {found!r}, expected {expected!r}"


@contextmanager
def refused(code):
    """The block must be refused with this code."""
    try:
        yield
    except psycopg.Error as error:
        assert error.sqlstate == code, f"refused with {error.sqlstate}, expected {code}: {error}"
    else:
        raise AssertionError(f"not refused, expected {code}")


def turned_away(server, **parameters):
    try:
        server.connect(**parameters).close()
    except psycopg.OperationalError as error:
        return str(error)
    raise AssertionError("let in")


def one(connection, sql, values=None, **options):
    rows = connection.execute(sql, values, **options).fetchall()
    same(len(rows), 1)
    return rows[0]


# ---- who gets in ---------------------------------------------------------------------------


@check
def encryption_and_passwords_are_insisted_on(server):
    with server.connect() as connection:
        assert connection.pgconn.ssl_in_use
        same(connection.info.parameter_status("default_transaction_read_only"), "on")
    assert "authentication failed" in turned_away(server, password="not this one")
    assert "authentication failed" in turned_away(server, user="no one")
    assert "encryption" in turned_away(server, sslmode="disable", sslrootcert=None)


# ---- what is there -------------------------------------------------------------------------


@check
def tables_and_columns_are_listed(server):
    with server.connect() as connection:
        sql = "select table_name from information_schema.tables where table_schema = 'public'"
        same({name for (name,) in connection.execute(sql)}, RELATIONS | VIEWS)
        sql = (
            "select column_name from information_schema.columns"
            " where table_schema = 'public' and table_name = %s order by ordinal_position"
        )
        listed = [name for (name,) in connection.execute(sql, ("gold",))]
        empty = connection.execute("select * from gold limit 0")
        described = [column.name for column in empty.description]
        same(listed, described)


@check
def a_statement_reads_one_epoch(server):
    with server.connect() as connection:
        counts = "(select count(*) from silver) as silver, (select count(*) from gold) as gold"
        sql = f"select {counts}, assay_epoch()"
        silver, gold, epoch = one(connection, sql)
        same(silver, gold)
        assert gold > 0, "gold has no rows, so most checks say nothing"
        assert isinstance(epoch, int) and epoch > 0, epoch
        sql = "select min(epoch), max(epoch), count(*) from (select assay_epoch() as epoch from gold) as told"
        earliest, latest, rows = one(connection, sql)
        same((earliest, rows), (latest, gold))
        assert earliest >= epoch, "epochs went back"


# ---- values --------------------------------------------------------------------------------


@check
def values_keep_their_types_in_text_and_in_binary(server):
    columns = 'key, "timestamp", mention, predicted_score, sentiment_id'
    sql = f'select {columns} from gold where "timestamp" is not null order by key, mention limit 1'
    odd = "select null::text, 'quote '' and ä😀'::text, true, -9e15::float8"
    with server.connect() as connection:
        known = one(connection, sql)
        same([type(value) for value in known], [str, datetime.datetime, str, float, int])
        for binary in (False, True):
            same(one(connection, sql, binary=binary), known)
            same(one(connection, odd, binary=binary), (None, "quote ' and ä😀", True, -9e15))


@check
def parameters_of_each_type_find_their_rows(server):
    with server.connect() as connection:
        sql = 'select key, "timestamp", mention, sentiment_id from gold where "timestamp" is not null limit 1'
        key, timestamp, mention, sentiment = one(connection, sql)
        elsewhere = timestamp.astimezone(datetime.timezone(datetime.timedelta(hours=5, minutes=30)))
        cases = [
            ("mention = %s", (mention,), f"mention = '{mention}'"),
            ("sentiment_id = %s", (sentiment,), f"sentiment_id = {sentiment}"),
            ('"timestamp" = %s', (timestamp,), f"\"timestamp\" = '{timestamp.isoformat()}'"),
            ('"timestamp" = %s', (elsewhere,), f"\"timestamp\" = '{timestamp.isoformat()}'"),
            ("key = any(%s)", ([key, "no such key"],), f"key = '{key}'"),
            (
                "mention = %s and sentiment_id = %s",
                (mention, sentiment),
                f"mention = '{mention}' and sentiment_id = {sentiment}",
            ),
        ]
        for condition, values, literal in cases:
            (expected,) = one(connection, f"select count(*) from gold where {literal}")
            assert expected > 0, literal
            for form in ("%s", "%b", "%t"):
                question = f"select count(*) from gold where {condition.replace('%s', form)}"
                same((form, condition, one(connection, question, values)[0]), (form, condition, expected))
        same(one(connection, "select count(*) from gold where mention = %s", (None,)), (0,))
        everything = one(connection, "select count(*) from gold where %s::text is null", (None,))
        same(everything, one(connection, "select count(*) from gold"))


@check
def a_prepared_statement_can_be_run_again(server):
    with server.connect() as connection:
        labels = [label for (label,) in connection.execute("select distinct sentiment_id from gold")]
        for label in labels * 4:
            sql = "select count(*) from gold where sentiment_id = "
            counted = one(connection, f"{sql}%s", (label,), prepare=True)
            same(counted, one(connection, f"{sql}{label}"))


@check
def rows_can_be_had_by_name(server):
    with server.connect(row_factory=dict_row) as connection:
        row = one(connection, "select * from mention_sentiment order by total desc, mention limit 1")
        same(row["total"], row["negative"] + row["neutral"] + row["positive"])


# ---- cursors and transactions --------------------------------------------------------------


@check
def a_cursor_gives_every_row_once(server):
    with server.connect(autocommit=False) as connection:
        (count,) = one(connection, "select count(*) from gold")
        for binary in (False, True):
            with connection.cursor("parts", binary=binary) as cursor:
                cursor.execute("select key, mention from gold")
                # psycopg ends with a segmentation fault where it fetches what was not described.
                assert cursor.description is not None, "the server does not tell what the cursor's rows are"
                rows, parts = [], 0
                while part := cursor.fetchmany(500):
                    rows, parts = rows + part, parts + 1
                same((len(rows), parts), (count, -(-count // 500)))
            connection.rollback()


@check
def a_cursor_made_by_hand_gives_every_row_once(server):
    with server.connect(autocommit=False) as connection:
        (count,) = one(connection, "select count(*) from gold")
        connection.execute("declare parts cursor for select key, mention, assay_epoch() from gold")
        rows = []
        while part := connection.execute("fetch forward 500 from parts").fetchall():
            rows += part
            # What is asked in between, of later epochs, must not show in the cursor.
            connection.execute("select count(*) from gold")
        same(len(rows), count)
        same(len({epoch for _, _, epoch in rows}), 1)
        connection.execute("close parts")
        with refused("34000"):
            connection.execute("fetch 1 from parts")


@check
def statements_share_a_transaction_block(server):
    with server.connect(autocommit=False) as connection:
        with connection.transaction():
            (first,) = one(connection, "select count(*) from gold")
            same(connection.info.transaction_status, TransactionStatus.INTRANS)
            (second,) = one(connection, "select count(*) from silver")
            same(first, second)
        same(connection.info.transaction_status, TransactionStatus.IDLE)
        with refused("42703"):
            connection.execute("select nothing from gold")
        same(connection.info.transaction_status, TransactionStatus.INERROR)
        with refused("25P02"):
            connection.execute("select 1")
        connection.rollback()
        same(one(connection, "select 1"), (1,))


# ---- what is refused -----------------------------------------------------------------------


def is_refused(connection, sql, code, prepare):
    (before,) = one(connection, "select count(*) from gold")
    try:
        with refused(code):
            connection.execute(sql, prepare=prepare)
    except AssertionError as error:
        return f"{sql}{' (prepared)' if prepare else ''}: {error}"
    same(connection.info.transaction_status, TransactionStatus.IDLE)
    same(one(connection, "select count(*) from gold"), (before,))
    return None


def all_refused(server, statements, prepare):
    with server.connect() as connection:
        results = [is_refused(connection, sql, code, prepare) for sql, code in statements.items()]
        wrong = [result for result in results if result]
        assert not wrong, "\n    ".join(wrong)


@check
def nothing_can_be_changed(server):
    all_refused(server, REFUSED, prepare=False)


@check
def nothing_can_be_changed_by_prepared_statements(server):
    all_refused(server, REFUSED, prepare=True)


@check
def mistakes_have_their_codes(server):
    all_refused(server, MISTAKEN, prepare=False)


@check
def mistakes_in_prepared_statements_have_their_codes(server):
    all_refused(server, MISTAKEN, prepare=True)


# ---- statements that take too long ---------------------------------------------------------


@contextmanager
def ends_soon(after):
    """The block must be over, cancelled, soon after so many seconds."""
    began = time.monotonic()
    with refused("57014"):
        yield
    took = time.monotonic() - began
    assert took < after + PATIENCE, f"ended after {took:.1f} s"


def stopped_after(server, prepare):
    with server.connect() as connection:
        connection.execute("set statement_timeout = 300")
        with ends_soon(after=0.3):
            connection.execute(ENDLESS, prepare=prepare)
        connection.execute("set statement_timeout = 0")
        same(one(connection, "select 1"), (1,))


@check
def a_statement_ends_at_its_timeout(server):
    stopped_after(server, prepare=False)


@check
def a_prepared_statement_ends_at_its_timeout(server):
    stopped_after(server, prepare=True)


@contextmanager
def cancelled_meanwhile(connection):
    """Cancels what the block runs, again and again: what has not begun yet cannot be cancelled."""
    ended = threading.Event()

    def cancel():
        while not ended.wait(0.2):
            connection.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    try:
        yield
    finally:
        ended.set()
        canceller.join()


@check
def a_statement_can_be_cancelled(server):
    with server.connect() as connection:
        with cancelled_meanwhile(connection), ends_soon(after=0.2):
            connection.execute(ENDLESS)
        # One that comes too late ends nothing that follows.
        connection.cancel()
        same(one(connection, "select 1"), (1,))


# ---- sessions ------------------------------------------------------------------------------


@check
def settings_stay_in_their_session(server):
    with server.connect() as one_of_them, server.connect() as other:
        sql = 'select "timestamp" from gold where "timestamp" is not null order by key limit 1'
        (timestamp,) = one(one_of_them, sql)
        one_of_them.execute("set time zone 'Asia/Kolkata'")
        one_of_them.execute("set statement_timeout = 12345")
        same(one(one_of_them, "show time zone"), ("Asia/Kolkata",))
        same(one(one_of_them, "show statement_timeout"), ("12345ms",))
        same(one(other, "show time zone"), ("UTC",))
        same(one(other, "show statement_timeout"), ("0",))
        # The same moment, told in another zone.
        (shifted,) = one(one_of_them, sql)
        same((shifted, str(shifted.tzinfo)), (timestamp, "Asia/Kolkata"))
        (unshifted,) = one(other, sql)
        same(unshifted.utcoffset(), datetime.timedelta(0))


@check
def a_time_zone_is_set_by_its_other_spelling_too(server):
    with server.connect() as connection:
        connection.execute("set timezone = 'Asia/Kolkata'")
        same(one(connection, "show timezone"), ("Asia/Kolkata",))


def main():
    server = Server(*sys.argv[1:])
    failed = 0
    for run in CHECKS:
        words = run.__name__.replace("_", " ")
        began = time.monotonic()
        try:
            run(server)
        except Exception as error:
            failed += 1
            where = traceback.extract_tb(error.__traceback__)[1].lineno
            print(f"FAILED {words} (line {where}): {type(error).__name__}: {error}")
        else:
            print(f"ok {words} ({time.monotonic() - began:.1f} s)")
        sys.stdout.flush()
    if failed:
        sys.exit(f"{failed} of {len(CHECKS)} checks failed")
    print(f"ok: {len(CHECKS)} checks with psycopg {psycopg.__version__}")


if __name__ == "__main__":
    main()
