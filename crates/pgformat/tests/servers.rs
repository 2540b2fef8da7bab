//! What real clusters of each version have on disk, read here and by PostgreSQL's own programs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use pgkeep_pgformat::{
    BackupLabel, BackupMethod, BackupSource, ControlFile, ControlFileError, DatabaseState, Lsn, PageHeader,
    PageVerdict, SegmentName, SegmentSize, TablespaceMap, Timeline, TimelineHistory, verify_page,
};
use pgkeep_testkit::{Cluster, ClusterOptions, StopMode, require, requirements, server_user};

/// The lines of `pg_controldata`, by what stands before the colon.
fn control_data(cluster: &Cluster) -> BTreeMap<String, String> {
    let mut command = cluster.client_command("pg_controldata");
    let output = command
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .arg(cluster.data_dir())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

fn control_file(cluster: &Cluster) -> ControlFile {
    ControlFile::parse(&fs::read(cluster.data_dir().join("global/pg_control")).unwrap()).unwrap()
}

fn compare(cluster: &Cluster) -> ControlFile {
    let (ours, theirs) = (control_file(cluster), control_data(cluster));
    let timeline = ours.min_recovery_timeline.map_or(0, Timeline::as_u32);
    for (name, value) in [
        ("pg_control version number", ours.control_version.to_string()),
        ("Catalog version number", ours.catalog_version.to_string()),
        ("Database system identifier", ours.system_identifier.to_string()),
        ("Database cluster state", ours.state.to_string()),
        ("Latest checkpoint location", ours.checkpoint.to_string()),
        (
            "Latest checkpoint's REDO location",
            ours.checkpoint_redo.to_string(),
        ),
        (
            "Latest checkpoint's TimeLineID",
            ours.checkpoint_timeline.to_string(),
        ),
        (
            "Minimum recovery ending location",
            ours.min_recovery_point.to_string(),
        ),
        ("Min recovery ending loc's timeline", timeline.to_string()),
        ("Backup start location", ours.backup_start_point.to_string()),
        ("Backup end location", ours.backup_end_point.to_string()),
        (
            "End-of-backup record required",
            if ours.backup_end_required { "yes" } else { "no" }.to_owned(),
        ),
        ("Database block size", ours.block_bytes.to_string()),
        (
            "Blocks per segment of large relation",
            ours.relation_segment_blocks.to_string(),
        ),
        ("WAL block size", ours.wal_block_bytes.to_string()),
        ("Bytes per WAL segment", ours.wal_segment_size.bytes().to_string()),
        (
            "Data page checksum version",
            ours.data_checksum_version.to_string(),
        ),
    ] {
        assert_eq!(theirs.get(name), Some(&value), "{name} of {}", cluster.major());
    }
    let segment = SegmentName::holding(
        ours.checkpoint_timeline,
        ours.checkpoint_redo,
        ours.wal_segment_size,
    );
    assert_eq!(theirs["Latest checkpoint's REDO WAL file"], segment.to_string());
    ours
}

fn options(major: u32) -> ClusterOptions {
    ClusterOptions::new(major)
        .initdb_arg("--data-checksums")
        .initdb_arg("--wal-segsize=2")
}

#[test]
fn control_files_are_read_as_pg_controldata_reads_them() {
    for major in requirements::MAJORS {
        let mut cluster = require!(Cluster::start(options(major)));
        cluster.psql(
            "postgres",
            "CREATE TABLE a AS SELECT generate_series(1, 50000) i; CHECKPOINT",
        );
        let running = compare(&cluster);
        assert_eq!(running.state, DatabaseState::InProduction);
        assert_eq!(
            (running.wal_segment_size.bytes(), running.data_checksum_version),
            (2 << 20, 1)
        );
        let epoch = cluster.psql(
            "postgres",
            "SELECT extract(epoch FROM checkpoint_time)::bigint FROM pg_control_checkpoint()",
        );
        assert_eq!(running.checkpoint_time.to_string(), epoch);
        cluster.stop(StopMode::Fast);
        assert_eq!(compare(&cluster).state, DatabaseState::ShutDown);
        // As a standby without a primary, so that the fields of recovery say something.
        cluster.write_file("standby.signal", "");
        cluster.start_again();
        cluster.psql("postgres", "SELECT pg_promote()");
        cluster.psql("postgres", "CHECKPOINT");
        let promoted = compare(&cluster);
        assert_eq!(promoted.checkpoint_timeline.as_u32(), 2);
        history_is_read(&cluster);
        cluster.stop(StopMode::Fast);
        cluster.write_file("standby.signal", "");
        cluster.start_again();
        let standby = compare(&cluster);
        assert_eq!(standby.state, DatabaseState::InArchiveRecovery);
        assert!(standby.state.is_recovery() && standby.min_recovery_point.is_valid());
        cluster.stop(StopMode::Fast);
        assert_eq!(compare(&cluster).state, DatabaseState::ShutDownInRecovery);
        flipped_control_file_is_refused(&cluster);
    }
}

/// Of a server that was promoted once.
fn history_is_read(cluster: &Cluster) {
    let contents = fs::read(cluster.data_dir().join("pg_wal/00000002.history")).unwrap();
    let timeline = Timeline::new(2).unwrap();
    let history = TimelineHistory::parse(timeline, &contents).unwrap();
    let (at, next) = history.switch_point(Timeline::FIRST).unwrap();
    assert_eq!(next, timeline);
    let current: Lsn = cluster
        .psql("postgres", "SELECT pg_current_wal_lsn()")
        .parse()
        .unwrap();
    assert!(at < current);
    assert_eq!(history.timeline_of(current), timeline);
    // The server names segments likewise.
    let size = control_file(cluster).wal_segment_size;
    let name = cluster.psql("postgres", &format!("SELECT pg_walfile_name('{current}')"));
    // Up to 15 a position at an edge belongs to the segment before, from 16 on to the one it begins.
    assert!(
        [
            SegmentName::holding(timeline, current, size),
            SegmentName::before(timeline, current, size)
        ]
        .contains(&SegmentName::parse(&name, size).unwrap())
    );
}

fn flipped_control_file_is_refused(cluster: &Cluster) {
    let mut contents = fs::read(cluster.data_dir().join("global/pg_control")).unwrap();
    contents[40] ^= 1;
    assert!(matches!(
        ControlFile::parse(&contents),
        Err(ControlFileError::Checksum { .. })
    ));
}

/// The files of relations in a directory: a number, maybe with a fork's name and the number of the file.
fn relation_files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let is_relation = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with(|c: char| c.is_ascii_digit()) && path.is_file()
    };
    entries.filter(is_relation).collect()
}

/// How many pages are right, new, wrong.
fn judge(files: &[PathBuf], newest: Lsn) -> (u32, u32, Vec<(PathBuf, u32)>) {
    let (mut right, mut new, mut wrong) = (0, 0, Vec::new());
    for file in files {
        for (block, page) in (0..).zip(fs::read(file).unwrap().chunks(8192)) {
            assert!(PageHeader::parse(page).unwrap().lsn <= newest, "{file:?} {block}");
            match verify_page(page, block).unwrap() {
                PageVerdict::Right => right += 1,
                PageVerdict::New => new += 1,
                PageVerdict::Wrong { .. } => wrong.push((file.clone(), block)),
            }
        }
    }
    (right, new, wrong)
}

#[test]
fn checksums_agree_with_pg_checksums() {
    for major in requirements::MAJORS {
        let mut cluster = require!(Cluster::start(options(major)));
        let table = cluster.psql(
            "postgres",
            "CREATE TABLE a AS SELECT i, md5(i::text) t FROM generate_series(1, 20000) i; CREATE INDEX ON a (t);
             SELECT pg_relation_filepath('a')",
        );
        cluster.stop(StopMode::Fast);
        let data = cluster.data_dir();
        let newest = control_file(&cluster).checkpoint;
        let table = data.join(table);
        let mut files = relation_files(&data.join("global"));
        files.extend(relation_files(table.parent().unwrap()));
        let (right, _, wrong) = judge(&files, newest);
        assert!(right > 500, "{right}");
        assert_eq!(wrong, []);
        let check = |cluster: &Cluster| {
            let mut command = cluster.client_command("pg_checksums");
            let output = command
                .env("LC_ALL", "C")
                .arg("--check")
                .arg("-D")
                .arg(cluster.data_dir())
                .output()
                .unwrap();
            (
                output.status.success(),
                String::from_utf8_lossy(&output.stderr).into_owned(),
            )
        };
        assert!(check(&cluster).0);
        // One bit in the middle of the table's page 7.
        let mut page = fs::read(&table).unwrap()[7 * 8192..8 * 8192].to_vec();
        page[5000] ^= 16;
        let mut file = fs::OpenOptions::new().write(true).open(&table).unwrap();
        file.seek(SeekFrom::Start(7 * 8192)).unwrap();
        file.write_all(&page).unwrap();
        assert_eq!(judge(&files, newest).2, [(table.clone(), 7)]);
        let PageVerdict::Wrong { stored, reckoned } = verify_page(&page, 7).unwrap() else {
            panic!("the page is taken for right");
        };
        let (passed, message) = check(&cluster);
        assert!(!passed);
        let expected = format!("block 7: calculated checksum {reckoned:X} but block contains {stored:X}");
        assert!(message.contains(&expected), "{expected}\n{message}");
    }
}

#[test]
fn labels_and_maps_of_servers_are_read() {
    for major in requirements::MAJORS {
        let cluster = require!(Cluster::start(options(major)));
        let size = SegmentSize::new(2 << 20).unwrap();
        // A backslash in a path, which the map escapes.
        let directory = cluster.socket_dir().join("t\\1");
        fs::create_dir(&directory).unwrap();
        if let Some((user, group)) = server_user() {
            std::os::unix::fs::chown(&directory, Some(user.as_raw()), Some(group.as_raw())).unwrap();
        }
        cluster.psql(
            "postgres",
            &format!("CREATE TABLESPACE t LOCATION '{}'", directory.display()),
        );
        let oid = cluster.psql("postgres", "SELECT oid FROM pg_tablespace WHERE spcname = 't'");
        let text = cluster.psql(
            "postgres",
            "SELECT pg_backup_start('größer\nSTART TIMELINE: 7', true) AS start \\gset
             SELECT :'start';
             SELECT encode(convert_to(labelfile, 'UTF8'), 'hex') || ' ' || encode(convert_to(spcmapfile, 'UTF8'), 'hex')
             FROM pg_backup_stop(false)",
        );
        let (start, rest) = text.split_once('\n').unwrap();
        let (label, map) = rest.split_once(' ').unwrap();
        let bytes = |hex: &str| -> Vec<u8> {
            let digits = hex
                .as_bytes()
                .chunks(2)
                .map(|pair| std::str::from_utf8(pair).unwrap());
            digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
        };
        let label = BackupLabel::parse(&bytes(label)).unwrap();
        assert_eq!(label.start_lsn.to_string(), start);
        assert!(label.checkpoint_lsn > label.start_lsn);
        assert_eq!(label.label, "größer\nSTART TIMELINE: 7");
        assert_eq!(
            (label.method, label.source),
            (BackupMethod::Streamed, BackupSource::Primary)
        );
        assert_eq!(label.start_timeline, Timeline::FIRST);
        let segment = SegmentName::holding(Timeline::FIRST, label.start_lsn, size);
        assert_eq!(label.start_segment, segment.to_string());
        let contents = bytes(map);
        let map = TablespaceMap::parse(&contents).unwrap();
        assert_eq!(map.tablespaces.len(), 1);
        assert_eq!(map.tablespaces[0].oid.to_string(), oid);
        assert_eq!(map.tablespaces[0].path, directory.to_str().unwrap().as_bytes());
        // pg_backup_stop leaves the last line end to whoever writes the file; a server that streams writes it.
        let mut written = map.to_bytes();
        if !contents.ends_with(b"\n") {
            written.pop();
        }
        assert_eq!(written, contents);
    }
}
