#!/bin/sh
# Restores this dump with stock tools alone: psql and pg_restore, zstd, and age when it is encrypted. See RESTORE.md.
#   sh restore.sh [-i KEYFILE] [-j JOBS] [-d DATABASE] [-n]
# The server is the one that psql finds: set PGHOST, PGPORT, PGUSER, PGPASSWORD. -n leaves the roles as they are.
set -eu

here=${PGKEEP_DUMP_FOLDER:-$(cd "$(dirname "$0")" && pwd)}
key=${PGKEEP_DUMP_KEY:-}

say() { printf '%s\n' "$*" >&2; }
die() { say "restore.sh: $*"; exit 1; }

# Opens a file of the dump, by what its name ends in: all of it or an error. Piping it straight into psql would let a
# broken object look like the end of the rows.
open_into() {
  source=$here/$1
  if [ ! -f "$source" ]; then
    case $1 in ../*) die "$1 is missing: bring that folder, too, beside this one" ;; esac
    die "$1 is missing: the dump is not whole"
  fi
  case $1 in
    *.zst.age)
      command -v age >/dev/null || die "age is not installed, and the dump is encrypted"
      [ -n "$key" ] || die "the dump is encrypted: give the key file with -i KEYFILE"
      age --decrypt --identity "$key" --output "$2.zst" "$source" || die "cannot decrypt $1"
      source=$2.zst ;;
    *.zst) ;;
    *) ln -sf "$source" "$2" || die "cannot open $1"; return 0 ;;
  esac
  command -v zstd >/dev/null || die "zstd is not installed"
  zstd --quiet --decompress --force -o "$2" "$source" || die "cannot decompress $1: it is damaged"
  rm -f "$2.zst"
}

# The same for an object that the index names. To zstd, one that was cut off between two of its frames looks whole.
open_object() {
  open_into "$1" "$2"
  expected=$(awk -F '\t' -v name="$1" 'NF == 4 && $3 == name { print $4; exit }' "$PGKEEP_DUMP_INDEX")
  found=$(($(wc -c < "$2")))
  [ "$found" -eq "${expected:--1}" ] || die "$1 holds $found bytes, and not ${expected:-what the index says}: it is damaged"
}

# Objects that are pieces of one file.
open_all_into() {
  target=$1
  shift
  : > "$target"
  for piece in "$@"; do
    open_object "$piece" "$target.piece"
    cat "$target.piece" >> "$target"
    rm "$target.piece"
  done
}

# pg_restore from 17 on makes a setting that older servers refuse. Then all that it complains about is looked at, and
# nothing else may be wrong. Its sessions write at the same time, so the beginnings of their lines may be mixed.
harmless() {
  awk '{
    if (waiting) { if ($0 != "Command was: SET transaction_timeout = 0;") bad = 1; waiting = 0; next }
    if ($0 ~ /could not execute query: .*transaction_timeout/) { waiting = 1; next }
    gsub(/pg_restore: |error: /, "")
    if ($0 ~ /^warning: errors ignored on restore: [12]$/) counted = 1
    else if ($0 != "" && $0 !~ /^WARNING: password file /) bad = 1
  } END { exit bad || waiting || !counted }' "$1"
}
restore() {
  if [ "$newer" = no ]; then
    pg_restore --exit-on-error --no-tablespaces --dbname="$connection" "$@"
  elif ! LC_ALL=C pg_restore --no-tablespaces --dbname="$connection" "$@" 2> "$work/complaints"; then
    harmless "$work/complaints" || { cat "$work/complaints" >&2; return 1; }
  fi
}

objects() { awk -F '\t' -v folder="$1" -v step="$2" '$1 == folder && $2 == step { print $3 }' "$PGKEEP_DUMP_INDEX"; }
run_script() { psql --no-psqlrc --quiet --output=/dev/null --set ON_ERROR_STOP=1 --file "$1"; }

if [ "${1:-}" = load ]; then
  # One object, in a process of its own. 255 tells xargs to begin no other.
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  (open_object "$2" "$work/rows") || exit 255
  export PGOPTIONS="${PGOPTIONS:-} -c synchronous_commit=off -c row_security=off -c search_path= -c statement_timeout=0"
  # Rows in COPY's binary format have their statement in the index; the others are scripts.
  statement=$(printf '%b.' "$(objects "$2" copy)")
  statement=${statement%.}
  if [ -n "$statement" ]; then
    export PGCLIENTENCODING="$3"
    psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --command "$statement" < "$work/rows"
  else
    run_script "$work/rows"
  fi || { say "restore.sh: cannot load $2"; exit 255; }
  exit 0
fi

jobs=2 only='' roles=yes
while getopts i:j:d:n option; do
  case $option in
    i) key=$OPTARG ;; j) jobs=$OPTARG ;; d) only=$OPTARG ;; n) roles=no ;;
    *) die "usage: sh restore.sh [-i KEYFILE] [-j JOBS] [-d DATABASE] [-n]" ;;
  esac
done
for tool in psql pg_restore awk grep sed head wc xargs mktemp; do
  command -v "$tool" >/dev/null || die "$tool is not installed"
done
[ -z "$key" ] || [ -r "$key" ] || die "there is no key file $key"
[ -f "$here/manifest" ] || die "there is no manifest in $here: this dump was never finished"
# What was given up has a note of that in the manifest's place.
! head -c 32 "$here/manifest" | grep -q '"swept_at"' || die "this dump was given up before it was finished"
export PGKEEP_DUMP_FOLDER="$here" PGKEEP_DUMP_KEY="$key"
export PGCONNECT_TIMEOUT="${PGCONNECT_TIMEOUT:-15}"
maintenance=${PGDATABASE:-postgres}

work=$(mktemp -d) unfinished=''
end() {
  status=$?
  rm -rf "$work"
  [ "$status" = 0 ] || [ -z "$unfinished" ] \
    || say "restore.sh: failed, and database '$unfinished' is NOT complete: drop it before you try again"
  exit "$status"
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

for suffix in .zst.age .zst ''; do [ ! -f "$here/index.tsv$suffix" ] || break; done
[ -f "$here/index.tsv$suffix" ] || die "index.tsv is missing: the dump is not whole"
if command -v b3sum >/dev/null; then
  (cd "$here" && b3sum --quiet --check checksums.b3) || die "stored objects are damaged or missing"
elif [ -z "$suffix" ]; then
  # Opened files have no checksums inside, as zstd and age make them.
  compare=''
  for tool in sha256sum 'shasum -a 256'; do
    ! command -v "${tool%% *}" >/dev/null || [ -n "$compare" ] || compare=$tool
  done
  if [ -z "$compare" ]; then
    say "restore.sh: none of b3sum, sha256sum and shasum is installed: files that were altered are NOT noticed"
  else
    (cd "$here" && $compare -c checksums.sha256) > "$work/compared" \
      || { grep -v ': OK$' "$work/compared" >&2 || :; die "files are damaged or missing"; }
  fi
fi

open_into "index.tsv$suffix" "$work/index"
awk -F '\t' '{ last = $1 " " $2 " " $3 } END { exit last != "all end " (NR - 1) }' "$work/index" \
  || die "index.tsv$suffix is damaged: lines are missing"
export PGKEEP_DUMP_INDEX="$work/index"
folders=$(awk -F '\t' '$2 == "database" { print $1 }' "$work/index")
database_of() {
  database=$(printf '%b.' "$(objects "$1" database)")
  database=${database%.}
}
ask() { PGDATABASE=$1 psql --no-psqlrc --quiet --no-align --tuples-only --set ON_ERROR_STOP=1 --set name="$database"; }

# Nothing is touched before it is clear that nothing is in the way.
found=''
for folder in $folders; do
  database_of "$folder"
  [ -z "$only" ] || [ "$only" = "$database" ] || continue
  found=yes
  there=$(ask "$maintenance" <<'SQL'
SELECT count(*) FROM pg_catalog.pg_database WHERE datname = :'name';
SQL
) || die "cannot ask the server for its databases"
  [ "$there" = 0 ] || contents=$(ask "$database" <<'SQL'
WITH own AS (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'),
  member AS (SELECT classid, objid FROM pg_catalog.pg_depend WHERE deptype = 'e')
SELECT (SELECT count(*) FROM pg_catalog.pg_class WHERE relnamespace IN (SELECT oid FROM own) AND relkind <> 'i'
    AND ('pg_catalog.pg_class'::pg_catalog.regclass, oid) NOT IN (SELECT classid, objid FROM member))
  + (SELECT count(*) FROM pg_catalog.pg_proc WHERE pronamespace IN (SELECT oid FROM own)
    AND ('pg_catalog.pg_proc'::pg_catalog.regclass, oid) NOT IN (SELECT classid, objid FROM member))
  + (SELECT count(*) FROM own JOIN pg_catalog.pg_namespace n USING (oid) WHERE nspname <> 'public'
    AND ('pg_catalog.pg_namespace'::pg_catalog.regclass, oid) NOT IN (SELECT classid, objid FROM member))
  + (SELECT count(*) FROM pg_catalog.pg_largeobject_metadata);
SQL
) || die "cannot look into database '$database'"
  [ "$there" = 0 ] || [ "$contents" = 0 ] \
    || die "database '$database' is there already and holds something: drop it, or restore another one with -d"
  [ "$there" = 0 ] || : > "$work/$folder.there"
done
[ -n "$found" ] || die "the dump has no database '$only'"

newer=no database=$maintenance
if [ "$(pg_restore --version | sed 's/^[^0-9]*\([0-9]*\).*/\1/')" -ge 17 ]; then
  server=$(echo 'SHOW server_version_num;' | ask "$maintenance") || die "cannot ask the server for its version"
  [ "$server" -ge 170000 ] || newer=yes
fi

if [ "$roles" = yes ] && [ -n "$(objects all globals)" ]; then
  say "roles"
  open_object "$(objects all globals)" "$work/globals.sql"
  database=$maintenance
  echo 'SELECT pg_catalog.quote_ident(rolname) FROM pg_catalog.pg_roles;' | ask "$maintenance" > "$work/existing" \
    || die "cannot ask for the roles that exist"
  # Roles that exist keep their passwords and attributes. Tablespaces are a matter of the machine.
  awk 'FNR == NR { exists[$0] = 1; next }
    /^(CREATE|ALTER|COMMENT ON|GRANT .* ON|REVOKE .* ON) TABLESPACE / { next }
    /^(CREATE|ALTER) ROLE / {
      name = $0
      sub(/^[A-Z]* ROLE /, "", name)
      if (match(name, /^"([^"]|"")*"/) || match(name, /^[^ ;]*/)) name = substr(name, 1, RLENGTH)
      if (name in exists) next
    }
    { print }' "$work/existing" "$work/globals.sql" > "$work/roles.sql"
  PGDATABASE=$maintenance run_script "$work/roles.sql" \
    || die "cannot make the roles; make them by hand and run this again with -n"
fi

for folder in $folders; do
  database_of "$folder"
  [ -z "$only" ] || [ "$only" = "$database" ] || continue
  say "database $database"
  unfinished=$database
  if [ ! -f "$work/$folder.there" ]; then
    open_object "$(objects "$folder" create)" "$work/create.sql"
    PGDATABASE=$maintenance run_script "$work/create.sql" || die "cannot make database '$database'"
  fi
  export PGDATABASE="$database"
  open_object "$(objects "$folder" before)" "$work/before.sql"
  run_script "$work/before.sql" || die "cannot prepare database '$database'"
  # shellcheck disable=SC2046 # Names of objects have no spaces.
  open_all_into "$work/schema.dump" $(objects "$folder" schema)
  # Foreign keys to hypertables can only be checked when TimescaleDB's restore mode has ended.
  objects "$folder" after_foreign_key | sed 's/.*/^[0-9]*; & /' > "$work/late"
  # What needs a table that the dump was made without.
  objects "$folder" left_out | sed 's/.*/^[0-9]*; & /' > "$work/left_out"
  pg_restore --list "$work/schema.dump" > "$work/entries" || die "cannot read the schema"
  # What before.sql has made.
  schema=$(printf '%b.' "$(objects "$folder" extension_schema)")
  schema=${schema%.} awk '!/ (EXTENSION - timescaledb|COMMENT - EXTENSION timescaledb) *$/ &&
    (ENVIRON["schema"] == "" || !index($0, " SCHEMA - " ENVIRON["schema"] " "))' "$work/entries" \
    | grep -v -f "$work/late" -f "$work/left_out" > "$work/list"
  # A connection string, because pg_restore would take a name with an equals sign for one.
  connection="dbname='$(printf '%s.' "$database" | sed "s/[\\\\']/\\\\&/g")"
  connection="${connection%.}'"
  restore --section=pre-data --use-list "$work/list" "$work/schema.dump" || die "cannot make the tables of '$database'"
  for object in $(objects "$folder" configuration); do
    sh "$0" load "$object" || die "cannot load the extensions' configuration of '$database'"
  done
  objects "$folder" data > "$work/data"
  encoding=$(objects "$folder" encoding)
  # shellcheck disable=SC2016 # The inner shell's words.
  [ ! -s "$work/data" ] \
    || xargs -P "$jobs" -n 1 sh -c 'exec sh "$0" load "$2" "$1"' "$0" "$encoding" < "$work/data" || die "cannot load the rows of '$database'"
  for object in $(objects "$folder" sequences); do sh "$0" load "$object" || die "cannot set the sequences"; done
  restore --section=post-data --use-list "$work/list" --jobs "$jobs" "$work/schema.dump" \
    || die "cannot make the indexes and constraints of '$database'"
  if [ -n "$(objects "$folder" large_objects)" ]; then
    # shellcheck disable=SC2046 # As above.
    open_all_into "$work/large_objects.dump" $(objects "$folder" large_objects)
    restore "$work/large_objects.dump" || die "cannot restore the large objects of '$database'"
  fi
  open_object "$(objects "$folder" after)" "$work/after.sql"
  run_script "$work/after.sql" || die "cannot finish database '$database'"
  if grep -v -f "$work/left_out" "$work/entries" | grep -f "$work/late" > "$work/list"; then
    restore --section=post-data --use-list "$work/list" "$work/schema.dump" || die "cannot make foreign keys of '$database'"
  fi
  # Last: a short time limit or a read-only default would have stopped all this.
  open_object "$(objects "$folder" settings)" "$work/settings.sql"
  run_script "$work/settings.sql" || die "cannot set the properties of '$database'"
  unfinished=''
  export PGDATABASE="$maintenance"
done
say "done"
