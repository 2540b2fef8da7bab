//! Object stores that run here: SeaweedFS, which is a real S3, `rclone serve s3`, which ignores conditional puts and
//! so is what a probe must warn of, and moto, which has the settings of Amazon's buckets.
//!
//! Each has its own directory and free ports, listens on loopback, and is killed with its directory removed when it's
//! dropped or the test's process ends in any way.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use crate::process::{poll_until, wait_until};
use crate::requirements::{Missing, cache, moto, store};

/// Starts its arguments from the third on, and kills that when its own standard input ends: when the test lets go, or its
/// process is gone. Then removes the directory, its second argument.
const WATCHDOG: &str = r#"
trap '' HUP INT TERM
directory=$1
shift
"$@" >"$directory/log" 2>&1 </dev/null &
server=$!
(while kill -0 $server 2>/dev/null; do sleep 0.2; done; echo gone >"$directory/gone") &
read -r _
kill -KILL $server 2>/dev/null
wait $server 2>/dev/null
tries=0
while ! rm -rf "$directory" 2>/dev/null && [ $tries -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
"#;

/// How long a server may take to start on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Ports are chosen before the server takes them, so somebody else may be faster.
const START_ATTEMPTS: usize = 3;

/// A server process under a watchdog.
#[derive(Debug)]
struct Server {
    directory: PathBuf,
    watchdog: Child,
}

impl Server {
    fn spawn(directory: &Path, command: &[String]) -> Self {
        let watchdog = Command::new("/bin/sh")
            .args(["-c", WATCHDOG, "pgkeep-test-store"])
            .arg(directory)
            .args(command)
            .env("WEED_S3_SSE_KEY", "pgkeep-test")
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("starts the watchdog");
        Self {
            directory: directory.to_owned(),
            watchdog,
        }
    }

    /// Whether it came to answer. False where it ended, perhaps for a port that was taken.
    fn answers(&self, ready: impl Fn() -> bool) -> bool {
        let gone = self.directory.join("gone");
        let started = Instant::now();
        wait_until(START_LIMIT, &mut || ready() || gone.exists());
        assert!(
            started.elapsed() < START_LIMIT,
            "the store didn't start: {}",
            self.log()
        );
        !gone.exists()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

/// A SeaweedFS server with its S3 gateway.
#[derive(Debug)]
pub struct SeaweedFs {
    program: PathBuf,
    server: Server,
    ports: Ports,
    /// `http://127.0.0.1:port`
    pub endpoint: String,
    /// Of an identity that may do everything.
    pub access_key: String,
    /// Of an identity that may do everything.
    pub secret_key: String,
    /// Of an identity that may write and list, and neither read nor delete.
    pub write_only_access_key: String,
    /// Of an identity that may write and list, and neither read nor delete.
    pub write_only_secret_key: String,
}

#[derive(Debug)]
struct Ports {
    master: u16,
    master_grpc: u16,
    filer: u16,
    filer_grpc: u16,
    s3: u16,
}

impl SeaweedFs {
    /// Starts a server with nothing in it.
    ///
    /// # Errors
    /// `weed` isn't here: neither `PGKEEP_TEST_WEED` names it nor did `scripts/test-setup` install it.
    pub fn start() -> Result<Self, Missing> {
        let program = program("PGKEEP_TEST_WEED", "weed")?;
        for _ in 0..START_ATTEMPTS {
            if let Some(server) = Self::try_start(&program) {
                return Ok(server);
            }
        }
        panic!("SeaweedFS ended {START_ATTEMPTS} times while it started");
    }

    fn try_start(program: &Path) -> Option<Self> {
        let directory = directory();
        let ports = free_ports(8);
        let [
            master,
            master_grpc,
            volume,
            volume_grpc,
            filer,
            filer_grpc,
            s3,
            s3_grpc,
        ] = ports[..]
        else {
            panic!("eight ports")
        };
        let config = write_identities(&directory);
        let d = directory.display();
        let mut line = format!(
            "server -dir={d} -ip=127.0.0.1 -ip.bind=127.0.0.1 -master.port={master} -master.port.grpc={master_grpc} \
             -volume.port={volume} -volume.port.grpc={volume_grpc} -filer.port={filer} -filer.port.grpc={filer_grpc} \
             -filer.localSocket={d}/filer.sock -s3 -s3.port={s3} -s3.port.grpc={s3_grpc} -s3.port.iceberg=0 \
             -s3.port.lance=0 -s3.localSocket={d}/s3.sock"
        );
        write!(
            line,
            " -s3.config={} -volume.max=0 -master.volumeSizeLimitMB=1024 -master.telemetry=false",
            config.display()
        )
        .expect("writes to a string");
        let program_text = program.to_str().expect("a UTF-8 path").to_owned();
        let command: Vec<String> = std::iter::once(program_text)
            .chain(line.split(' ').map(str::to_owned))
            .collect();
        let server = Server::spawn(&directory, &command);
        // The gateway listens last, but the filer may still refuse writes when it does.
        let ready = || get_status(s3, "/status") == Some(200) && get_status(filer, "/") == Some(200);
        if !server.answers(ready) {
            return None;
        }
        Some(Self {
            program: program.to_owned(),
            server,
            ports: Ports {
                master,
                master_grpc,
                filer,
                filer_grpc,
                s3,
            },
            endpoint: format!("http://127.0.0.1:{s3}"),
            access_key: ALL_KEY.0.to_owned(),
            secret_key: ALL_KEY.1.to_owned(),
            write_only_access_key: WRITER_KEY.0.to_owned(),
            write_only_secret_key: WRITER_KEY.1.to_owned(),
        })
    }

    /// Makes a bucket, and returns its URL.
    pub fn bucket(&self, name: &str) -> String {
        self.shell(&format!("s3.bucket.create -name {name}"));
        self.wait_for_bucket(name)
    }

    /// Makes a bucket with versioning and Object Lock, and returns its URL.
    pub fn bucket_with_lock(&self, name: &str) -> String {
        self.shell(&format!("s3.bucket.create -name {name} -withLock"));
        self.wait_for_bucket(name)
    }

    fn wait_for_bucket(&self, name: &str) -> String {
        let what = format!("bucket {name} in {}", self.endpoint);
        // Unsigned, so that it's refused when the bucket is there and not found when it isn't.
        poll_until(&what, START_LIMIT, || {
            get_status(self.ports.s3, &format!("/{name}/none")) == Some(403)
        });
        format!("s3://{name}")
    }

    /// Runs a command of `weed shell`.
    fn shell(&self, line: &str) {
        let Ports {
            master,
            master_grpc,
            filer,
            filer_grpc,
            ..
        } = self.ports;
        let mut shell = Command::new(&self.program)
            .args(["shell", &format!("-master=127.0.0.1:{master}.{master_grpc}")])
            .arg(format!("-filer=127.0.0.1:{filer}.{filer_grpc}"))
            .current_dir(&self.server.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts weed shell");
        let mut stdin = shell.stdin.take().expect("a pipe");
        stdin
            .write_all(format!("{line}\nexit\n").as_bytes())
            .expect("writes to weed shell");
        drop(stdin);
        let output = shell.wait_with_output().expect("weed shell ends");
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            output.status.success() && !text.contains("error:"),
            "weed shell: {line}: {text}"
        );
    }
}

/// Access key and secret of SeaweedFS' two identities.
const ALL_KEY: (&str, &str) = ("pgkeep-test", "pgkeep-test-secret");
const WRITER_KEY: (&str, &str) = ("pgkeep-writer", "pgkeep-writer-secret");

fn write_identities(directory: &Path) -> PathBuf {
    let identity = |name: &str, (access, secret): (&str, &str), actions: &str| {
        let credentials = format!(r#"[{{"accessKey":"{access}","secretKey":"{secret}"}}]"#);
        format!(r#"{{"name":"{name}","credentials":{credentials},"actions":[{actions}]}}"#)
    };
    let all = identity("all", ALL_KEY, r#""Admin","Read","Write","List","Tagging""#);
    // What may put in SeaweedFS may also delete.
    let writer = identity("writer", WRITER_KEY, r#""Write","List""#);
    let config = directory.join("s3.json");
    fs::write(&config, format!(r#"{{"identities":[{all},{writer}]}}"#)).expect("writes s3.json");
    config
}

/// `rclone serve s3` over a directory: it takes `If-None-Match` and overwrites all the same.
#[derive(Debug)]
pub struct RcloneS3 {
    server: Server,
    /// `http://127.0.0.1:port`
    pub endpoint: String,
    /// The only identity's.
    pub access_key: String,
    /// The only identity's.
    pub secret_key: String,
}

impl RcloneS3 {
    /// Starts a server with nothing in it.
    ///
    /// # Errors
    /// `rclone` isn't here: neither `PGKEEP_TEST_RCLONE` names it nor did `scripts/test-setup` install it.
    pub fn start() -> Result<Self, Missing> {
        Self::start_with(None)
    }

    /// The same with TLS, by a certificate and its key as PEM.
    ///
    /// # Errors
    /// As [`RcloneS3::start`].
    pub fn start_with_tls(certificate: &str, key: &str) -> Result<Self, Missing> {
        Self::start_with(Some((certificate, key)))
    }

    fn start_with(tls: Option<(&str, &str)>) -> Result<Self, Missing> {
        let program = program("PGKEEP_TEST_RCLONE", "rclone")?;
        for _ in 0..START_ATTEMPTS {
            if let Some(server) = Self::try_start(&program, tls) {
                return Ok(server);
            }
        }
        panic!("rclone ended {START_ATTEMPTS} times while it started");
    }

    fn try_start(program: &Path, tls: Option<(&str, &str)>) -> Option<Self> {
        let directory = directory();
        let port = free_ports(1)[0];
        let data = directory.join("data");
        fs::create_dir(&data).expect("makes a directory");
        let (access_key, secret_key) = ("pgkeep-test".to_owned(), "pgkeep-test-secret".to_owned());
        let config = directory.join("rclone.conf");
        fs::write(&config, "").expect("writes rclone.conf");
        let text = |path: &Path| path.to_str().expect("a UTF-8 path").to_owned();
        let mut command = vec![
            text(program),
            "serve".to_owned(),
            "s3".to_owned(),
            format!("--config={}", config.display()),
            format!("--addr=127.0.0.1:{port}"),
            format!("--auth-key={access_key},{secret_key}"),
            text(&data),
        ];
        if let Some((certificate, key)) = tls {
            for (name, pem) in [("cert", certificate), ("key", key)] {
                let path = directory.join(name);
                fs::write(&path, pem).expect("writes the certificate");
                command.push(format!("--{name}={}", path.display()));
            }
        }
        let server = Server::spawn(&directory, &command);
        if !server.answers(|| get_status(port, "/").is_some()) {
            return None;
        }
        Some(Self {
            server,
            endpoint: format!(
                "{}://127.0.0.1:{port}",
                if tls.is_some() { "https" } else { "http" }
            ),
            access_key,
            secret_key,
        })
    }

    /// Makes a bucket, and returns its URL.
    pub fn bucket(&self, name: &str) -> String {
        fs::create_dir(self.server.directory.join("data").join(name)).expect("makes a bucket");
        format!("s3://{name}")
    }
}

/// moto's S3: an imitation that has every setting of a bucket, and takes every credential.
#[derive(Debug)]
pub struct Moto {
    _server: Server,
    port: u16,
    /// `http://127.0.0.1:port`
    pub endpoint: String,
}

impl Moto {
    /// Starts a server with nothing in it.
    ///
    /// # Errors
    /// moto isn't here: `scripts/test-setup` didn't install it.
    pub fn start() -> Result<Self, Missing> {
        let packages = moto()?;
        for _ in 0..START_ATTEMPTS {
            if let Some(server) = Self::try_start(&packages) {
                return Ok(server);
            }
        }
        panic!("moto ended {START_ATTEMPTS} times while it started");
    }

    fn try_start(packages: &Path) -> Option<Self> {
        let directory = directory();
        let port = free_ports(1)[0];
        // As scripts/test has it: without compiled files it takes seconds to start.
        let compiled = cache().join("infra/pycache");
        let command = [
            "env".to_owned(),
            format!("PYTHONPATH={}", packages.display()),
            format!("PYTHONPYCACHEPREFIX={}", compiled.display()),
            "python3".to_owned(),
            "-m".to_owned(),
            "moto.server".to_owned(),
            format!("--port={port}"),
        ];
        let server = Server::spawn(&directory, &command);
        if !server.answers(|| get_status(port, "/").is_some()) {
            return None;
        }
        Some(Self {
            _server: server,
            port,
            endpoint: format!("http://127.0.0.1:{port}"),
        })
    }

    /// Makes a bucket, and returns its URL.
    pub fn bucket(&self, name: &str) -> String {
        self.put(&format!("/{name}"), "");
        format!("s3://{name}")
    }

    /// Puts an object, or a setting of a bucket: `/bucket?versioning`.
    pub fn put(&self, path: &str, body: &str) {
        let (status, said) = self.request("PUT", path, body);
        assert!((200..300).contains(&status), "PUT {path}: {status} {said}");
    }

    /// What there is: an object, or a setting; its status, too.
    pub fn get(&self, path: &str) -> (u16, String) {
        self.request("GET", path, "")
    }

    /// One request, with its answer's status and body.
    pub fn request(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connects to moto");
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{}\r\nContent-Length: {}\r\n\r\n{body}",
            self.port,
            body.len()
        );
        stream.write_all(request.as_bytes()).expect("asks moto");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("moto answers");
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        (status.expect("a status"), body.unwrap_or_default())
    }
}

fn program(variable: &str, name: &str) -> Result<PathBuf, Missing> {
    match env::var_os(variable) {
        Some(path) => Ok(PathBuf::from(path)),
        None => store(name),
    }
}

fn directory() -> PathBuf {
    tempfile::Builder::new()
        .prefix("pgkeep-store-")
        .tempdir()
        .expect("makes a directory")
        .keep()
}

fn free_ports(count: usize) -> Vec<u16> {
    // All at once, so that they differ.
    let listeners: Vec<_> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").expect("finds a free port"))
        .collect();
    listeners
        .iter()
        .map(|listener| listener.local_addr().expect("has an address").port())
        .collect()
}

/// The status a server on loopback answers to a plain GET, none if it doesn't answer.
fn get_status(port: u16, path: &str) -> Option<u16> {
    const TIMEOUT: Duration = Duration::from_secs(5);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n").as_bytes())
        .ok()?;
    let mut start = [0_u8; 12];
    stream.read_exact(&mut start).ok()?;
    std::str::from_utf8(&start).ok()?.split(' ').nth(1)?.parse().ok()
}
