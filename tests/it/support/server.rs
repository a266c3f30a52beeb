//! The real binary, as a process.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::turns::Turn;
use super::{Client, guests, temp_dir, wait_for};

/// How long a start may take: the first one compiles all components.
const START: Duration = Duration::from_secs(240);

/// Lines of the server's log that a failed test shows.
const SHOWN_LINES: usize = 60;

/// How a server is started; clones start one on the same data directory.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    data: Arc<TempDir>,
    components: Option<PathBuf>,
    flags: Vec<String>,
    environment: Vec<(String, OsString)>,
}

/// A server that runs, until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    /// A client of it.
    pub(crate) client: Client,
    /// Where it listens, as `127.0.0.1:1234`.
    pub(crate) address: String,
    process: Process,
    setup: Setup,
    _turn: Option<Turn>,
}

/// A server that tests share which leave it as they found it.
#[derive(Debug)]
pub(crate) struct Shared {
    server: Arc<Server>,
    _turn: Turn,
}

/// A server of this test's own, with all guests as task types.
#[track_caller]
pub(crate) fn server(flags: &[&str]) -> Server {
    Setup::new(flags).start()
}

/// The server with the guests and the default settings. Its tasks and objects are everybody's, so
/// a test looks only at those it made, and ends them.
pub(crate) fn shared_server() -> Shared {
    static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    // First the turn: a test that wants to be alone waits for the turns of all who share.
    let turn = Turn::take();
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let server = shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(Setup::new(&[]).start_with(None));
        *shared = Arc::downgrade(&server);
        server
    });
    Shared { server, _turn: turn }
}

impl std::ops::Deref for Shared {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.server.process.show_log();
        }
    }
}

impl Setup {
    /// An empty data directory, all guests as task types, their code compiled already.
    pub(crate) fn new(flags: &[&str]) -> Setup {
        let setup = Setup::uncompiled(flags);
        link_all(compiled(), &setup.data_dir().join("compiled"));
        setup
    }

    /// An empty data directory, and all guests as task types.
    pub(crate) fn uncompiled(flags: &[&str]) -> Setup {
        Setup {
            data: Arc::new(temp_dir()),
            components: Some(guests::directory().to_owned()),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            environment: Vec::new(),
        }
    }

    /// The same with other components, or only the built-in ones.
    pub(crate) fn with_components(self, components: Option<&Path>) -> Setup {
        Setup { components: components.map(Path::to_owned), ..self }
    }

    /// The same with other flags.
    pub(crate) fn with_flags(self, flags: &[&str]) -> Setup {
        Setup { flags: flags.iter().map(|flag| (*flag).to_owned()).collect(), ..self }
    }

    /// The same with an environment variable.
    pub(crate) fn with_env(mut self, name: &str, value: impl Into<OsString>) -> Setup {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// The data directory.
    pub(crate) fn data_dir(&self) -> &Path {
        self.data.path()
    }

    /// The database.
    pub(crate) fn database(&self) -> PathBuf {
        self.data_dir().join("taskcell.db")
    }

    /// Makes a tenant, on the command line.
    #[track_caller]
    pub(crate) fn make_tenant(&self, name: &str) {
        assert_eq!(said(taskcell().args(["tenant", "create", name, "--data-dir"]).arg(self.data_dir())), "");
    }

    /// Makes a key, on the command line.
    #[track_caller]
    pub(crate) fn make_key(&self, tenant: &str, role: &str, flags: &[&str]) -> String {
        let mut command = taskcell();
        command.args(["key", "create", "--tenant", tenant, "--role", role, "--data-dir"]).arg(self.data_dir());
        let said = said(command.args(flags));
        let key = said.strip_suffix('\n').unwrap_or_else(|| panic!("no key: {said:?}"));
        assert!(key.starts_with("taskcell_") && !key.contains(char::is_whitespace), "{said:?}");
        key.to_owned()
    }

    /// The command that starts it.
    pub(crate) fn command(&self) -> Command {
        let mut command = taskcell();
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(self.data_dir());
        if let Some(components) = &self.components {
            command.arg("--components").arg(components);
        }
        command.args(&self.flags);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts it.
    #[track_caller]
    pub(crate) fn start(self) -> Server {
        let turn = Turn::take();
        self.start_with(Some(turn))
    }

    /// Starts it by a command that is like its own.
    #[track_caller]
    pub(crate) fn start_command(self, command: Command) -> Server {
        let turn = Turn::take();
        self.start_process(command, Some(turn))
    }

    #[track_caller]
    fn start_with(self, turn: Option<Turn>) -> Server {
        let command = self.command();
        self.start_process(command, turn)
    }

    #[track_caller]
    fn start_process(self, command: Command, turn: Option<Turn>) -> Server {
        let process = Process::start(command);
        let address = process.address();
        let client = Client::new(&format!("http://{address}"));
        Server { client, address, process, setup: self, _turn: turn }
    }

    /// Starts it where it must end by itself, without serving; returns what it wrote to stderr.
    #[track_caller]
    pub(crate) fn refused(&self) -> String {
        refused(&mut self.command())
    }
}

/// The binary, in an environment without settings.
pub(crate) fn taskcell() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskcell-under-test"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TASKCELL_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs a command that must succeed; returns its stdout.
#[track_caller]
pub(crate) fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must fail by itself, saying nothing on stdout; returns its stderr.
#[track_caller]
pub(crate) fn refused(command: &mut Command) -> String {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_child(&child);
    let (done, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let _ = done.send(child.wait_with_output());
    });
    let output: Output = match ended.recv_timeout(START) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            let _ = kill_process(pid, Signal::KILL);
            let _ = thread.join();
            panic!("{command:?} goes on where it should have been refused");
        }
    };
    thread.join().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code().is_some_and(|code| code != 0), "{command:?}: {}: {stderr}", output.status);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{command:?}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

impl Server {
    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// How it was started.
    pub(crate) fn setup(&self) -> &Setup {
        &self.setup
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.process.log().iter().fold(String::new(), |text, line| text + line + "\n")
    }

    /// Everything it has written to stdout, once it has ended.
    pub(crate) fn stdout(&mut self) -> String {
        self.process.stdout()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process.child), signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait_for_exit(&mut self) -> ExitStatus {
        wait_for("the server's end", || self.process.child.try_wait().unwrap())
    }

    /// Stops it in good order: SIGTERM, exit code 0.
    #[track_caller]
    pub(crate) fn stop(mut self) -> Setup {
        self.signal(Signal::TERM);
        let status = self.wait_for_exit();
        assert_eq!(status.code(), Some(0), "{status}: {}", self.log());
        self.setup.clone()
    }

    /// Ends it as a crash would: SIGKILL.
    #[track_caller]
    pub(crate) fn crash(mut self) -> Setup {
        self.signal(Signal::KILL);
        self.wait_for_exit();
        self.setup.clone()
    }
}

#[derive(Debug)]
struct Process {
    child: Child,
    first_line: Mutex<Receiver<String>>,
    stdout: Option<JoinHandle<String>>,
    log: Arc<Mutex<VecDeque<String>>>,
}

impl Process {
    fn start(mut command: Command) -> Process {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (line, first_line) = mpsc::channel();
        let stdout = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stdout.read_line(&mut text);
            let _ = line.send(text.clone());
            let _ = stdout.read_to_string(&mut text);
            text
        });
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let lines = log.clone();
        std::thread::spawn(move || {
            for line in stderr.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                lines.lock().unwrap_or_else(PoisonError::into_inner).push_back(line);
            }
        });
        Process { child, first_line: Mutex::new(first_line), stdout: Some(stdout), log }
    }

    #[track_caller]
    fn address(&self) -> String {
        let line =
            self.first_line.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(START).unwrap_or_default();
        let address = line
            .strip_prefix("taskcell listening on ")
            .and_then(|rest| rest.split_once("://"))
            .map(|(_, rest)| rest)
            .and_then(|rest| rest.strip_suffix('\n'));
        address.unwrap_or_else(|| panic!("the first line on stdout is {line:?}")).to_owned()
    }

    fn stdout(&mut self) -> String {
        self.stdout.take().map(|thread| thread.join().unwrap()).unwrap_or_default()
    }

    fn log(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show_log(&self) {
        let log = self.log();
        eprintln!("--- the server's log, from its last {SHOWN_LINES} lines on:");
        for line in log.iter().skip(log.len().saturating_sub(SHOWN_LINES)) {
            eprintln!("{line}");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            self.show_log();
        }
    }
}

/// The compiled code of all components, which the first server of a run makes or completes.
fn compiled() -> &'static Path {
    /// Files of earlier builds' components pile up to so many.
    const MOST_FILES: usize = 400;
    static COMPILED: OnceLock<&'static Path> = OnceLock::new();
    COMPILED.get_or_init(|| {
        let seed = Path::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/compiled"));
        if seed.exists() && std::fs::read_dir(seed).unwrap().count() > MOST_FILES {
            std::fs::remove_dir_all(seed).unwrap();
        }
        std::fs::create_dir_all(seed).unwrap();
        let setup = Setup::uncompiled(&["--max-running", "1"]);
        let used = setup.data_dir().join("compiled");
        link_all(seed, &used);
        drop(setup.clone().start_with(None));
        link_all(&used, seed);
        seed
    })
}

/// Gives the files of one directory to another as well. A file that is there stays.
fn link_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if !target.exists() {
            std::fs::hard_link(entry.path(), target).unwrap();
        }
    }
}
