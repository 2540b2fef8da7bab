#!/usr/bin/env python3
"""Lists, checks and extracts the dumps, and reads the WAL, in a pgkeep repository on a disk. Written from docs/FORMAT.md alone; shares no code with
pgkeep, so that the page and the program can't be wrong together. Needs Python 3.9, zstd, age for encrypted dumps, and b3sum
for hashes (without it they are not compared, which is said).

    pgkeep_reader.py DIRECTORY list
    pgkeep_reader.py DIRECTORY show ID
    pgkeep_reader.py DIRECTORY extract ID --into NEW_DIRECTORY [--identity KEYFILE] [--cluster NAME]
    pgkeep_reader.py DIRECTORY wal --into NEW_DIRECTORY [--identity KEYFILE] [--cluster NAME]

`extract` writes `globals.sql`, and for each database a folder with `schema.dump` (for pg_restore), `sequences.sql`,
`large_objects.dump`, and for each relation a file of its rows as COPY takes them, text or binary, named in `relations.json`.
`wal` writes every segment under PostgreSQL's name, those that are stored in parts filled up with zeros, and the histories of
timelines, each timeline of each system identifier in a folder of its own.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

FORMAT_KNOWN = 1
AGE_MAGIC = b"age-encryption.org/"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ID = re.compile(r"d(\d{8}T\d{6}Z)-[0-9a-f]{6}")
STAGING = re.compile(r"#\d+$")
HASH = re.compile(r"[0-9a-f]{64}")
BLOCK_BYTES = 1 << 18


class Wrong(Exception):
    """The repository isn't what docs/FORMAT.md says, or something is missing here."""


def require(condition, reason):
    if not condition:
        raise Wrong(reason)


def tool(name):
    path = shutil.which(name)
    require(path, f"{name} is not installed")
    return path


def inside(name):
    """A name of an object, which must not lead out of the dump's folder, unless into another dump's."""
    parts = name.split("/")
    if parts[0] == ".." and len(parts) > 2 and ID.fullmatch(parts[1]):
        parts = parts[2:]
    require(all(part not in ("", ".", "..") for part in parts), f"'{name}' is no name of an object")
    return name


class Contents:
    """A sealed object's contents as a stream: zstd, with age around it or not. `close` says whether all went well."""

    def __init__(self, path, identity):
        require(path.is_file(), f"{path} is missing")
        with open(path, "rb") as file:
            first = file.read(len(AGE_MAGIC))
        self.path, self.stages = path, []
        source = open(path, "rb")
        if first == AGE_MAGIC:
            require(identity, f"{path} is encrypted: give the key file with --identity")
            source = self.stage([tool("age"), "--decrypt", "--identity", str(identity)], source)
        else:
            require(first[: len(ZSTD_MAGIC)] == ZSTD_MAGIC, f"{path} is neither encrypted nor compressed")
        # The format's window is at most 8 MiB.
        self.output = self.stage([tool("zstd"), "--decompress", "--stdout", "--quiet", "--memory=8MiB"], source)

    def stage(self, command, source):
        process = subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        source.close()
        self.stages.append(process)
        return process.stdout

    def close(self):
        self.output.close()
        for process in self.stages:
            message = process.stderr.read().decode(errors="replace").strip()
            process.stderr.close()
            require(process.wait() == 0, f"{self.path} can't be opened: {message}")

    def copy_to(self, file):
        length = 0
        while block := self.output.read(BLOCK_BYTES):
            file.write(block)
            length += len(block)
        return length


class Hashes:
    """BLAKE3 by the stock program, many files at once."""

    def __init__(self):
        self.program = shutil.which("b3sum")
        self.wanted = []

    def expect(self, path, digest):
        require(HASH.fullmatch(digest), f"'{digest}' is no hash")
        self.wanted.append((path, digest))

    def compare(self):
        """How many were compared; none without b3sum."""
        if not self.program:
            return 0
        for start in range(0, len(self.wanted), 500):
            batch = self.wanted[start : start + 500]
            command = [self.program, "--no-names", *(str(path) for path, _ in batch)]
            found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            for (path, digest), digest_found in zip(batch, found):
                require(digest == digest_found, f"{path}: its hash is {digest_found}, not {digest}")
        return len(self.wanted)


class Repository:
    def __init__(self, directory, cluster, identity, kind="dump"):
        self.directory, self.identity = Path(directory), identity
        marker = self.directory / "pgkeep.json"
        require(marker.is_file(), f"{self.directory} is no repository: there is no pgkeep.json")
        version = json.loads(marker.read_text())["format"]
        require(version <= FORMAT_KNOWN, f"the repository's format is {version}, and this reader knows {FORMAT_KNOWN}")
        clusters = sorted(path.name for path in self.directory.iterdir() if (path / kind).is_dir())
        if cluster is None:
            require(len(clusters) == 1, f"choose one with --cluster: {', '.join(clusters) or 'there is none'}")
            cluster = clusters[0]
        require(cluster in clusters, f"there is no cluster '{cluster}'")
        self.cluster = self.directory / cluster

    def dumps(self):
        """(id, state, pin, evidence) of each folder, oldest first."""
        for folder in sorted((self.cluster / "dump").iterdir()):
            if ID.fullmatch(folder.name) and any(path.is_file() for path in folder.rglob("*")):
                yield folder.name, self.state(folder), self.newest("pin", folder.name), self.newest("verify", folder.name)

    def state(self, folder):
        manifest = folder / "manifest"
        if not manifest.is_file():
            return "unfinished"
        with open(manifest, "rb") as file:
            return "given up" if file.read(1) == b"{" else "complete"

    def newest(self, kind, dump):
        folder = self.cluster / kind / dump
        names = [path.name for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
        return json.loads((folder / max(names, key=int)).read_text()) if names else None

    def find(self, text):
        complete = [dump for dump, state, _, _ in self.dumps() if state == "complete"]
        fitting = complete[-1:] if text == "latest" else [dump for dump in complete if dump.startswith(text)]
        require(len(fitting) == 1, f"'{text}' names {len(fitting)} complete dumps")
        return Dump(self, fitting[0])


class Dump:
    def __init__(self, repository, name):
        self.identity, self.folder, self.name = repository.identity, repository.cluster / "dump" / name, name

    def json(self, name):
        contents = Contents(self.folder / name, self.identity)
        text = contents.output.read()
        contents.close()
        return json.loads(text)

    def manifest(self):
        manifest = self.json("manifest")
        version = manifest["format"]
        require(version <= FORMAT_KNOWN, f"the dump's format is {version}, and this reader knows {FORMAT_KNOWN}")
        require(manifest["id"] == self.name, f"the manifest belongs to {manifest['id']}")
        return manifest

    def stored(self, reference, hashes):
        """Where an object lies; its size is compared at once, its hash later."""
        path = self.folder / inside(reference["name"])
        require(path.is_file(), f"{path} is missing")
        found = path.stat().st_size
        require(found == reference["stored_bytes"], f"{path} has {found} bytes, not {reference['stored_bytes']}")
        hashes.expect(path, reference["hash"])
        return path

    def extract_objects(self, references, target, hashes):
        """Several objects into one file: they are its pieces."""
        with open(target, "wb") as file:
            for reference in references:
                contents = Contents(self.stored(reference, hashes), self.identity)
                length = contents.copy_to(file)
                contents.close()
                require(length == reference["plain_bytes"], f"{reference['name']} holds {length} bytes")

    def check_list(self, hashes):
        """checksums.b3 names every object but itself, the manifest last."""
        named = set()
        lines = [line.split("  ", 1) for line in (self.folder / "checksums.b3").read_text().splitlines()]
        require(lines and lines[-1][-1] == "manifest", "checksums.b3 is cut short")
        for digest, name in lines:
            require((self.folder / inside(name)).is_file(), f"{name} is missing")
            hashes.expect(self.folder / name, digest)
            named.add(name)
        stored = {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}
        stored = {name for name in stored if not STAGING.search(name)} - {"checksums.b3"}
        named = {name for name in named if not name.startswith("../")}
        require(stored >= named, "checksums.b3 names what isn't there")
        return stored - named


BINARY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
BINARY_TRAILER = b"\xff\xff"


def binary_row(stream, name):
    """The next row in COPY's binary format, as its bytes; none at the trailer."""
    def exactly(length):
        found = stream.read(length)
        require(len(found) == length, f"{name} ends inside a row")
        return found

    parts = [exactly(2)]
    if parts[0] == BINARY_TRAILER:
        return None
    for _ in range(int.from_bytes(parts[0], "big")):
        parts.append(exactly(4))
        length = int.from_bytes(parts[-1], "big", signed=True)
        require(length >= -1, f"{name} has a field of {length} bytes")
        parts.append(exactly(max(length, 0)))
    return b"".join(parts)


class DataReader:
    """Reads the blocks of one data object, comparing everything with the manifest."""

    def __init__(self, contents, name):
        self.contents, self.name = contents, name

    def line(self):
        line = self.contents.output.readline(1 << 20)
        require(line.endswith(b"\n"), f"{self.name} ends too early")
        return line.decode()

    def block(self, relation, segment, file):
        into = relation.get("load_into") or relation
        columns = f" ({relation['columns']})" if relation["columns"] else ""
        expected = f"COPY {quote(into['schema'])}.{quote(into['name'])}{columns} FROM stdin;\n"
        line = self.line()
        while line.startswith("SET "):
            line = self.line()
        # A column's name may hold a line feed.
        while len(line) < len(expected) and expected.startswith(line):
            line += self.line()
        require(line == expected, f"{self.name}: {line!r} stands where {expected!r} should")
        left, rows = segment["bytes"], 0
        while left:
            block = self.contents.output.read(min(left, BLOCK_BYTES))
            require(block, f"{self.name} ends inside a block")
            left -= len(block)
            rows += block.count(b"\n")
            file.write(block)
        require(rows == segment["rows"], f"{self.name}: {rows} rows of {relation['name']}, not {segment['rows']}")
        require(self.line() == "\\.\n", f"{self.name}: a block doesn't end where it should")
        return rows

    def stream(self, relation, segment, file):
        """All of an object in COPY's binary format."""
        stream, rows, length = self.contents.output, 0, 0
        require(stream.read(len(BINARY_HEADER)) == BINARY_HEADER, f"{self.name} has no header")
        while row := binary_row(stream, self.name):
            file.write(row)
            rows, length = rows + 1, length + len(row)
        require(rows == segment["rows"], f"{self.name}: {rows} rows of {relation['name']}, not {segment['rows']}")
        require(length == segment["bytes"], f"{self.name}: {length} bytes of {relation['name']}, not {segment['bytes']}")
        return rows

    def end(self):
        require(not self.contents.output.read(1), f"{self.name}: there is more in it than the manifest says")
        self.contents.close()


def quote(name):
    return '"' + name.replace('"', '""') + '"'


def extract_database(dump, database, target, hashes):
    target.mkdir()
    dump.extract_objects(database["schema"], target / "schema.dump", hashes)
    dump.extract_objects([database["dependents"]], target / "dependents.tsv", hashes)
    if database["sequences"]:
        dump.extract_objects([database["sequences"]], target / "sequences.sql", hashes)
    if database["large_objects"]:
        dump.extract_objects(database["large_objects"], target / "large_objects.dump", hashes)
    relations = database["relations"]
    rows = [0] * len(relations)
    is_binary = lambda place: relations[place].get("format") == "binary"
    path = lambda place: target / f"{place:06}.{'copy' if is_binary(place) else 'tsv'}"
    for place in range(len(relations)):
        path(place).touch()
    # Rows of a relation that goes on in several objects come in the order of the objects' names.
    for data in sorted(database["data"], key=lambda data: data["name"]):
        reader = DataReader(Contents(dump.stored(data, hashes), dump.identity), data["name"])
        for segment in data["segments"]:
            place = segment["relation"]
            require(0 <= place < len(relations), f"{data['name']} has rows of a relation that isn't listed")
            with open(path(place), "ab") as file:
                require(not is_binary(place) or len(data["segments"]) == 1, f"{data['name']}: binary rows have objects of their own")
                rows[place] += (reader.stream if is_binary(place) else reader.block)(relations[place], segment, file)
        reader.end()
    listed = []
    for place, relation in enumerate(relations):
        name = f"{relation['schema']}.{relation['name']}"
        require(rows[place] == relation["rows"], f"{name}: {rows[place]} rows, not {relation['rows']}")
        length = path(place).stat().st_size
        require(length == relation["plain_bytes"], f"{name}: {length} bytes, not {relation['plain_bytes']}")
        hashes.expect(path(place), relation["hash"])
        fields = {key: relation[key] for key in ("schema", "name", "kind", "columns", "rows")}
        fields["format"] = relation.get("format", "text")
        listed.append({**fields, "excluded": relation.get("data_excluded", False), "file": path(place).name})
    (target / "relations.json").write_text(json.dumps(listed, indent=1))
    return sum(rows)


def complete_streams(into):
    """Hashes are of the rows alone; COPY wants header and trailer around them."""
    for path in into.rglob("*.copy"):
        rows = path.with_suffix(".rows")
        path.rename(rows)
        with open(rows, "rb") as source, open(path, "wb") as file:
            file.write(BINARY_HEADER)
            shutil.copyfileobj(source, file)
            file.write(BINARY_TRAILER)
        rows.unlink()


def extract(dump, into):
    manifest, hashes, into = dump.manifest(), Hashes(), Path(into)
    into.mkdir()
    strangers = dump.check_list(hashes)
    if manifest["globals"]:
        dump.extract_objects([manifest["globals"]], into / "globals.sql", hashes)
    rows = 0
    for database in manifest["databases"]:
        folder = inside(database["folder"])
        rows += extract_database(dump, database, into / folder, hashes)
    require(rows == manifest["totals"]["rows"], f"{rows} rows in all, not {manifest['totals']['rows']}")
    compared = hashes.compare()
    complete_streams(into)
    names = {database["folder"]: database["name"] for database in manifest["databases"]}
    report = {"id": dump.name, "databases": names, "rows": rows, "hashes_compared": compared, "strangers": sorted(strangers)}
    print(json.dumps(report))
    if not compared:
        print("hashes were not compared: b3sum is not installed", file=sys.stderr)


SEGMENT = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})")
PART = re.compile(r"([0-9A-F]{24})\.([0-9A-F]{8})-([0-9A-F]{8})")
SEALED = re.compile(r"(.*)\.zst(?:\.age)?")
HASH_STANZA = re.compile(rb"age-encryption\.org/v1\n-> pgkeep-b3 ([0-9a-f]{64})\n\n")


class Wal:
    """The WAL of one system identifier."""

    def __init__(self, folder, identity, into):
        self.folder, self.identity, self.into, self.hashes = folder, identity, into, Hashes()
        self.segment_bytes = json.loads((folder / "segment_bytes").read_text())
        require(self.segment_bytes & (self.segment_bytes - 1) == 0, f"segments of {self.segment_bytes} bytes")

    def contents(self, path):
        contents = Contents(path, self.identity)
        data = contents.output.read()
        contents.close()
        return data

    def write(self, path, data, target, expected=None):
        """An object's contents to a file; its header, where it has one, tells the hash of them."""
        require(expected in (None, len(data)), f"{path} holds {len(data)} bytes, not {expected}")
        target.write_bytes(data)
        with open(path, "rb") as file:
            first = file.read(256)
        if first.startswith(AGE_MAGIC):
            found = HASH_STANZA.match(first)
            require(found, f"{path} has no hash in its header")
            self.hashes.expect(target, found.group(1).decode())

    def segment(self, name, whole, parts, target):
        """Returns up to which byte it is there."""
        if whole:
            self.write(whole, self.contents(whole), target, self.segment_bytes)
            return self.segment_bytes
        data = bytearray()
        for start, end, path in sorted(parts):
            require(start <= len(data), f"{name}: bytes {len(data)} to {start} are missing")
            piece = self.contents(path)
            require(len(piece) == end - start, f"{path} holds {len(piece)} bytes")
            overlap = min(len(data), end) - start
            require(data[start : start + overlap] == piece[:overlap], f"{path} differs from another part")
            data += piece[overlap:]
        target.write_bytes(data + bytes(self.segment_bytes - len(data)))
        return len(data)

    def timeline(self, folder):
        wholes, parts = {}, {}
        for path in folder.rglob("*"):
            sealed = SEALED.fullmatch(path.name)
            if not path.is_file() or not sealed:
                continue
            if part := PART.fullmatch(sealed.group(1)):
                bounds = int(part.group(2), 16), int(part.group(3), 16)
                parts.setdefault(part.group(1), []).append((*bounds, path))
            elif SEGMENT.fullmatch(sealed.group(1)):
                wholes[sealed.group(1)] = path
        target = self.into / folder.name
        target.mkdir(parents=True)
        for_each_log = (1 << 32) // self.segment_bytes
        ranges = []
        for name in sorted({*wholes, *parts}):
            _, log, number = (int(digits, 16) for digits in SEGMENT.fullmatch(name).groups())
            start = (log * for_each_log + number) * self.segment_bytes
            end = start + self.segment(name, wholes.get(name), parts.get(name, []), target / name)
            if ranges and ranges[-1][1] == start:
                ranges[-1][1] = end
            else:
                ranges.append([start, end])
        return ranges

    def extract(self):
        self.into.mkdir(parents=True, exist_ok=True)
        report = {"segment_bytes": self.segment_bytes, "timelines": {}, "histories": []}
        for path in sorted(self.folder.iterdir()):
            if path.is_dir() and re.fullmatch(r"[0-9A-F]{8}", path.name):
                report["timelines"][path.name] = self.timeline(path)
            elif history := re.fullmatch(r"([0-9A-F]{8}\.history)\.zst(?:\.age)?", path.name):
                self.write(path, self.contents(path), self.into / history.group(1))
                report["histories"].append(history.group(1))
        report["hashes_compared"] = self.hashes.compare()
        return report


def extract_wal(repository, into):
    report = {}
    for folder in sorted((repository.cluster / "wal").iterdir()):
        report[folder.name] = Wal(folder, repository.identity, Path(into) / folder.name).extract()
    print(json.dumps(report))


def list_dumps(repository):
    for name, state, pin, evidence in repository.dumps():
        started = datetime.strptime(ID.fullmatch(name).group(1), "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
        line = {"id": name, "state": state, "started_at": started.isoformat()}
        line["pinned"] = bool(pin and pin["pinned"])
        line["verified"] = evidence["passed"] if evidence else None
        if state == "complete":
            try:
                line["summary"] = Dump(repository, name).json("summary")
            except Wrong as wrong:
                line["summary"], line["why"] = None, str(wrong)
        print(json.dumps(line))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("repository", help="its directory")
    parser.add_argument("command", choices=["list", "show", "extract", "wal"])
    parser.add_argument("dump", nargs="?", default="latest", help="an id, the beginning of one, or 'latest'")
    parser.add_argument("--into", help="where to extract to; must not exist")
    parser.add_argument("--identity", help="the file with the private key")
    parser.add_argument("--cluster", help="which, where there are several")
    options = parser.parse_args()
    try:
        kind = "wal" if options.command == "wal" else "dump"
        repository = Repository(options.repository, options.cluster, options.identity, kind)
        if options.command == "wal":
            require(options.into, "say where to with --into")
            extract_wal(repository, options.into)
        elif options.command == "list":
            list_dumps(repository)
        elif options.command == "show":
            print(json.dumps(repository.find(options.dump).manifest(), indent=1))
        else:
            require(options.into, "say where to with --into")
            extract(repository.find(options.dump), options.into)
    except (Wrong, OSError, ValueError, KeyError) as error:
        print(f"pgkeep_reader: {error if not isinstance(error, KeyError) else f'a field is missing: {error}'}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
