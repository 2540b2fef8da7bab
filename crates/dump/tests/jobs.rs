//! TimescaleDB's jobs after a restore: none runs before its time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use pgkeep_testkit::{Cluster, ClusterOptions, require, requirements};

/// One job has run, one never has, one is off, and one is due in the distant future.
#[tokio::test(flavor = "multi_thread")]
async fn restored_jobs_of_the_community_edition_wait_for_their_time() {
    for server in require!(requirements::community(None)) {
        let start = || Cluster::start_with(&server.bin, &ClusterOptions::new(server.major).timescaledb());
        let (source, destination) = (start(), start());
        source.create_database("m");
        // The scheduler of the source doesn't get to run what is added in a restoring database.
        source.psql(
            "m",
            "CREATE EXTENSION timescaledb; CREATE TABLE log (job int, at timestamptz DEFAULT clock_timestamp());
             CREATE PROCEDURE work(job_id int, config jsonb) LANGUAGE sql AS 'INSERT INTO log (job) VALUES (job_id)';
             SELECT add_job('work', '1 hour', scheduled => false);
             SELECT alter_job(add_job('work', '1 day'), next_start => '2100-01-01 00:00+00');
             SELECT add_job('work', '2 hours', scheduled => false);",
        );
        // Never run, and scheduled, without statistics: as a policy is that was added the moment before.
        source.psql(
            "m",
            "SELECT _timescaledb_functions.stop_background_workers();
             DO $$DECLARE t regclass; BEGIN
               FOR t IN SELECT oid FROM pg_class WHERE relname IN ('bgw_job', 'bgw_job_stat') AND relkind = 'r' ORDER BY relname LOOP
                 IF t::text LIKE '%stat' THEN EXECUTE 'DELETE FROM ' || t || ' WHERE job_id = 1000';
                 ELSE EXECUTE 'UPDATE ' || t || ' SET scheduled = true WHERE id = 1000'; END IF;
               END LOOP; END$$",
        );
        let folder = tempfile::tempdir().unwrap();
        let repository = common::repository(folder.path(), false).await;
        let report = common::dump(&repository, &source, &common::dump_options(&source))
            .await
            .unwrap();
        let dumped = report
            .manifest
            .databases
            .iter()
            .find(|database| database.name == "m");
        let dumped = &dumped.unwrap().timescaledb.as_ref().unwrap().jobs;
        let job = dumped.iter().find(|job| job.id == 1000).unwrap();
        assert_eq!((job.scheduled, &job.next_start), (true, &None));
        let begun = destination.psql("postgres", "SELECT now()");
        common::restore(
            &repository,
            &report.id,
            &destination,
            &common::restore_options(&destination),
        )
        .await
        .unwrap();
        let starts = format!(
            "SELECT job_id, scheduled, next_start >= '{}'::timestamptz + schedule_interval, next_start = '2100-01-01 00:00+00'
             FROM timescaledb_information.jobs WHERE job_id >= 1000 ORDER BY 1",
            begun.trim()
        );
        let expected = "1000|t|t|f\n1001|t|t|t";
        assert!(
            destination.psql("m", &starts).starts_with(expected),
            "{}",
            destination.psql("m", &starts)
        );
        assert_eq!(destination.psql("m", "SELECT count(*) FROM log").trim(), "0");
    }
}
