#!/bin/sh
# Restores this dump with stock tools alone: psql and pg_restore, zstd, and age when it is encrypted. See RESTORE.md.
#   sh restore.sh [-i KEYFILE] [-j JOBS] [-d DATABASE]
# The server is the one that psql finds: set PGHOST, PGPORT, PGUSER, PGPASSWORD.
set -eu

here=${PGKEEP_DUMP_FOLDER:-$(cd "$(dirname "$0")" && pwd)}
key=${PGKEEP_DUMP_KEY:-}

say() { printf '%s\n' "$*" >&2; }
die() { say "restore.sh: $*"; exit 1; }

# Opens an object into a file: all of it or an error. Piping it straight into psql would let a broken object look like
# the end of the rows.
open_into() {
  object=$(find "$here" -path "$here/$1*" -type f | head -n 1)
  [ -n "$object" ] || die "$1 is missing"
  case $object in
    *.zst.age)
      [ -n "$key" ] || die "the dump is encrypted: give the key file with -i KEYFILE"
      age --decrypt --identity "$key" --output "$2.zst" "$object" || die "cannot decrypt $1"
      zstd --quiet --decompress --force --rm -o "$2" "$2.zst" || die "cannot decompress $1" ;;
    *.zst) zstd --quiet --decompress --force -o "$2" "$object" || die "cannot decompress $1" ;;
    # Exported by 'pgkeep export --format files', which opened it.
    *) cp "$object" "$2" || die "cannot read $1" ;;
  esac
}

run_script() { psql --no-psqlrc --quiet --output=/dev/null --set ON_ERROR_STOP=1 --file "$1"; }

if [ "${1:-}" = load ]; then
  # One object, in a process of its own.
  work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
  open_into "$2" "$work/script.sql"
  PGOPTIONS="${PGOPTIONS:-} -c synchronous_commit=off" run_script "$work/script.sql" || die "cannot load $2"
  exit 0
fi

jobs=2 only=
while getopts i:j:d: option; do
  case $option in
    i) key=$OPTARG ;; j) jobs=$OPTARG ;; d) only=$OPTARG ;;
    *) die "usage: sh restore.sh [-i KEYFILE] [-j JOBS] [-d DATABASE]" ;;
  esac
done
for tool in psql pg_restore zstd find xargs; do
  command -v "$tool" >/dev/null || die "$tool is not installed"
done
[ -f "$here/manifest" ] || die "there is no manifest in $here: this dump was never finished"
export PGKEEP_DUMP_FOLDER="$here" PGKEEP_DUMP_KEY="$key"
export PGCONNECT_TIMEOUT="${PGCONNECT_TIMEOUT:-15}"
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
maintenance=${PGDATABASE:-postgres}

if command -v b3sum >/dev/null && [ -f "$here/checksums.b3" ]; then
  (cd "$here" && b3sum --quiet --check checksums.b3) || die "stored objects are damaged"
fi

open_into index.tsv "$work/index"
objects() { awk -F '\t' -v folder="$1" -v step="$2" '$1 == folder && $2 == step { print $3 }' "$work/index"; }

if [ -n "$(objects all globals)" ]; then
  say "roles (those that exist already are reported and left as they are)"
  open_into globals.sql "$work/globals.sql"
  PGDATABASE=$maintenance psql --no-psqlrc --quiet --file "$work/globals.sql" >/dev/null || die "cannot run the globals"
fi

for folder in $(awk -F '\t' '$2 == "database" { print $1 }' "$work/index"); do
  database=$(printf '%b.' "$(objects "$folder" database)"); database=${database%.}
  [ -z "$only" ] || [ "$only" = "$database" ] || continue
  say "database $database"
  open_into "$folder/create.sql" "$work/create.sql"
  PGDATABASE=$maintenance run_script "$work/create.sql"
  export PGDATABASE="$database"
  open_into "$folder/settings.sql" "$work/settings.sql"
  run_script "$work/settings.sql"
  open_into "$folder/before.sql" "$work/before.sql"
  run_script "$work/before.sql"
  open_into "$folder/schema.dump" "$work/schema.dump"
  pg_restore --list "$work/schema.dump" \
    | grep -vE ' (EXTENSION - timescaledb|COMMENT - EXTENSION timescaledb) *$' > "$work/list"
  # A connection string, because pg_restore would take a name with an equals sign for one.
  connection="dbname='$(printf '%s' "$database" | sed "s/[\\\\']/\\\\&/g")'"
  pg_restore --section=pre-data --use-list "$work/list" --exit-on-error --dbname="$connection" "$work/schema.dump"
  for object in $(objects "$folder" configuration); do sh "$0" load "$object"; done
  objects "$folder" data | xargs -r -P "$jobs" -n 1 sh "$0" load
  for object in $(objects "$folder" sequences); do sh "$0" load "$object"; done
  pg_restore --section=post-data --use-list "$work/list" --exit-on-error --jobs "$jobs" --dbname="$connection" "$work/schema.dump"
  for object in $(objects "$folder" large_objects); do
    open_into "$object" "$work/large_objects.dump"
    pg_restore --exit-on-error --dbname="$connection" "$work/large_objects.dump"
  done
  open_into "$folder/after.sql" "$work/after.sql"
  run_script "$work/after.sql"
  export PGDATABASE="$maintenance"
done
say "done"
