# As TimescaleDB's image has it: the extension is in every database from the start, those made later included.
for database in postgres template1; do
  psql --no-psqlrc --username="$user" --dbname="$database" --command='SET client_min_messages = error' \
    --command='CREATE EXTENSION IF NOT EXISTS timescaledb CASCADE'
done
