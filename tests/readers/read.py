"""Reads Delta tables as others do, and prints what they hold.

Usage: read.py FOLDER SPARK_JARS

Prints one JSON object: for each reader and question the answer. The questions are those that the
test also asks Assay, in SQL that all of them understand.
"""

import glob
import json
import sys

QUESTIONS = {
    "bronze": 'select count(*), count(distinct "user") from bronze',
    "silver": "select count(*), count(distinct mention) from silver",
    "gold": "select count(*), sum(sentiment_id), sum(predicted_sentiment_id) from gold",
    "mention_sentiment": "select count(*), sum(total), sum(positive), sum(negative) from mention_sentiment",
    "users": "select count(*), sum(tweets), sum(with_mention) from users",
    "scores": "select count(*), count(distinct text) from scores",
}


def numbers(row):
    return [int(value) for value in row]


def with_polars(folder):
    import polars

    answers = {}
    for relation, question in QUESTIONS.items():
        frame = polars.scan_delta(f"{folder}/{relation}")
        context = polars.SQLContext({relation: frame})
        answers[relation] = numbers(context.execute(question, eager=True).row(0))
    return answers


def with_delta_rs(folder):
    from deltalake import DeltaTable, QueryBuilder

    answers = {}
    for relation, question in QUESTIONS.items():
        builder = QueryBuilder().register(relation, DeltaTable(f"{folder}/{relation}"))
        batches = builder.execute(question)
        table = batches.read_all() if hasattr(batches, "read_all") else batches
        answers[relation] = numbers(column[0].as_py() for column in table.columns)
    return answers


def with_spark(folder, jars):
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master("local[1]")
        .config("spark.jars", ",".join(glob.glob(f"{jars}/*.jar")))
        .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
        .config(
            "spark.sql.catalog.spark_catalog",
            "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        )
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", "1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    answers = {}
    for relation, question in QUESTIONS.items():
        session.read.format("delta").load(f"{folder}/{relation}").createOrReplaceTempView(relation)
        answers[relation] = numbers(session.sql(question.replace('"', "`")).first())
    session.stop()
    return answers


def main():
    folder, jars = sys.argv[1:]
    answers = {
        "polars": with_polars(folder),
        "delta-rs": with_delta_rs(folder),
        "spark": with_spark(folder, jars),
    }
    print(json.dumps({"questions": QUESTIONS, "answers": answers}))


if __name__ == "__main__":
    main()
