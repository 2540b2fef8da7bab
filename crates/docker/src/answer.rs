//! Is it the container's own server that answers?

use std::time::Duration;

use pgkeep_pg::{Session, Target};

/// Two settings are told at once, or the server is stuck; whoever waits for it has a deadline to look at.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// A session, and who answers there.
pub(crate) struct Answer {
    pub(crate) session: Session,
    /// `cluster_name`
    pub(crate) name: String,
    /// The system identifier.
    pub(crate) identity: String,
}

/// Connects and asks, in little time.
pub(crate) async fn ask(target: &Target) -> Result<Answer, String> {
    let mut session = Session::connect(target)
        .await
        .map_err(|error| error.to_string())?;
    session.set_statement_deadline(Some(ANSWER_LIMIT));
    let sql = "SELECT pg_catalog.current_setting('cluster_name'), system_identifier::pg_catalog.text
        FROM pg_catalog.pg_control_system()";
    let rows = session.query(sql).await.map_err(|error| error.to_string())?;
    session.set_statement_deadline(None);
    let text = |place| {
        rows.first()
            .and_then(|row| row.get::<String>(place).ok())
            .unwrap_or_default()
    };
    let (name, identity) = (text(0), text(1));
    Ok(Answer {
        session,
        name,
        identity,
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use pgkeep_pg::{Conninfo, Environment};

    use super::*;

    #[tokio::test]
    async fn a_server_that_lets_in_and_then_says_nothing_is_not_waited_for() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut scrap = [0; 1024];
                let read = stream.read(&mut scrap);
                if read.is_ok_and(|read| read > 16) {
                    // AuthenticationOk, ReadyForQuery.
                    stream.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").unwrap();
                }
                kept.push(stream);
            }
        });
        let text = format!("host=127.0.0.1 port={port} user=u sslmode=disable");
        let target = Conninfo::parse(&text).unwrap().resolve(&Environment::empty());
        let asked = tokio::time::timeout(ANSWER_LIMIT * 6, ask(&target.unwrap())).await;
        let error = asked.expect("it waits for ever").err().unwrap();
        assert!(error.contains("no answer from the server"), "{error}");
    }
}
