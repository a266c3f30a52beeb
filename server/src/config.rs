//! The configuration: flags, environment variables and a TOML file. A flag wins over a variable, a
//! variable over the file. Everything is checked here, before a port is bound.

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::host::http::{HttpLimits, HttpSettings, Network};
use crate::keys::{KeyId, Role};
use crate::limits::Limits;
use crate::quotas::{MOST, Quotas};

/// taskcell runs other people's code as background tasks, sandboxed and durable.
#[derive(Debug, Parser)]
#[command(name = "taskcell", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What the program is to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the API and run tasks.
    Serve(Box<Config>),
    /// Copy everything that is kept into one file, also while a server runs on it.
    Backup(BackupArgs),
    /// Fill an empty data directory from a backup.
    Restore(BackupArgs),
    /// Tenants: those who share the server.
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Keys: what clients authenticate with.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Look at a component on stdin: the server's own doing, in a process apart.
    #[command(hide = true)]
    CheckComponent {
        /// The most memory that a task can have here, in bytes.
        task_memory_bytes: u64,
    },
    /// Compile a component from stdin to stdout: the server's own doing, in a process apart.
    #[command(hide = true)]
    CompileComponent {
        /// Address space it may use, in bytes.
        memory_bytes: u64,
        /// CPU time it may use, in milliseconds.
        cpu_ms: u64,
    },
}

/// What can be done with tenants.
#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// Make a tenant, if there is none of that name; also while a server runs.
    Create {
        /// Its name: letters a-z, digits and '-'.
        name: String,
        /// Where everything is kept.
        #[arg(long, env = "TASKCELL_DATA_DIR", default_value = "./taskcell-data")]
        data_dir: PathBuf,
    },
}

/// What can be done with keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key and print it, once; also while a server runs.
    Create(CreateKeyArgs),
    /// Revoke a key: it stops working at once.
    Revoke {
        /// The tenant whose it is.
        #[arg(long)]
        tenant: String,
        /// The key's id: the 16 digits after `taskcell_`.
        id: KeyId,
        /// Where everything is kept.
        #[arg(long, env = "TASKCELL_DATA_DIR", default_value = "./taskcell-data")]
        data_dir: PathBuf,
    },
}

/// A key to be made.
#[derive(Debug, Args)]
pub struct CreateKeyArgs {
    /// The tenant whose it is to be: `operator` administers all others.
    #[arg(long)]
    pub tenant: String,
    /// What it may do: read, submit, operate, deploy or admin, each what the ones before it may, and more.
    #[arg(long)]
    pub role: Role,
    /// A task type that it may run and change; can be repeated. All where it is not given.
    #[arg(long = "task-type", value_name = "NAME")]
    pub task_types: Vec<String>,
    /// What it is called by.
    #[arg(long, default_value = "")]
    pub label: String,
    /// Days after which it is good no more; for ever where it is not given.
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub expires_in_days: Option<u32>,
    /// Where everything is kept.
    #[arg(long, env = "TASKCELL_DATA_DIR", default_value = "./taskcell-data")]
    pub data_dir: PathBuf,
}

/// A backup and the data directory it is of.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The backup.
    pub file: PathBuf,
    /// Where everything is kept.
    #[arg(long, env = "TASKCELL_DATA_DIR", default_value = "./taskcell-data")]
    pub data_dir: PathBuf,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Everything that can be set. Each flag is also the variable `TASKCELL_…` and a key of the file.
#[derive(Clone, Debug, Args)]
pub struct Config {
    /// Where to listen; port 0 takes any that is free.
    #[arg(long, env = "TASKCELL_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// A PEM file with the server's certificate and those up to an authority: TLS is spoken then. Read again on SIGHUP.
    #[arg(long, env = "TASKCELL_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// A PEM file with the private key of that certificate.
    #[arg(long, env = "TASKCELL_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Where everything is kept. One process at a time.
    #[arg(long, env = "TASKCELL_DATA_DIR", default_value = "./taskcell-data")]
    pub data_dir: PathBuf,
    /// A TOML file with these settings; its keys are the flags' names.
    #[arg(long, env = "TASKCELL_CONFIG")]
    pub config: Option<PathBuf>,
    /// How log lines look; `RUST_LOG` says which there are.
    #[arg(long, env = "TASKCELL_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// How long running tasks may go on after SIGTERM, in milliseconds.
    #[arg(long, env = "TASKCELL_DRAIN_TIMEOUT", default_value_t = 10_000, value_name = "MS")]
    pub drain_timeout: u64,
    /// A directory of components: every `NAME.wasm` in it is the task type NAME.
    #[arg(long, env = "TASKCELL_COMPONENTS", value_name = "DIR")]
    pub components: Option<PathBuf>,
    /// Tasks that run at once, sleeping ones included. Less where the system allows less.
    #[arg(long, env = "TASKCELL_MAX_RUNNING", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=25_000))]
    pub max_running: u32,
    /// Tasks that may use the CPU when another is started: 28 for each core where it is not set.
    #[arg(long, env = "TASKCELL_MAX_WORKING", value_parser = clap::value_parser!(u32).range(1..=25_000))]
    pub max_working: Option<u32>,
    /// Threads that run tasks: one for each core where it is not set.
    #[arg(long, env = "TASKCELL_GUEST_THREADS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub guest_threads: Option<u32>,
    /// Memory that tasks must leave free, in bytes: a tenth of what is free at the start where it is not set.
    #[arg(long, env = "TASKCELL_MEMORY_RESERVE", value_name = "BYTES")]
    pub memory_reserve: Option<u64>,
    /// Connections at once.
    #[arg(long, env = "TASKCELL_MAX_CONNECTIONS", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
    /// Event streams of one tenant at once.
    #[arg(long, env = "TASKCELL_MAX_EVENT_STREAMS", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_event_streams: u32,
    /// Tenants that there may be.
    #[arg(long, env = "TASKCELL_MAX_TENANTS", default_value_t = 1000, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(2..=100_000))]
    pub max_tenants: u64,
    /// How long a client may take to send a request's head, its body, or to read each 16 KiB of its answer, in milliseconds.
    #[arg(long, env = "TASKCELL_CLIENT_TIMEOUT", default_value_t = 30_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub client_timeout: u64,
    /// How often a task is attempted again that the server went down under.
    #[arg(long, env = "TASKCELL_MAX_INTERRUPTIONS", default_value_t = 3)]
    pub max_interruptions: u32,
    /// Tasks that may be Pending, of all tenants together.
    #[arg(long, env = "TASKCELL_MAX_PENDING", default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub max_pending: u64,
    /// Tasks that may be Pending of one tenant.
    #[arg(long, env = "TASKCELL_MAX_TENANT_PENDING", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub max_tenant_pending: u64,
    /// Tasks that may be Running of one tenant: no bound of its own where it is not set.
    #[arg(long, env = "TASKCELL_MAX_TENANT_RUNNING", value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=MOST))]
    pub max_tenant_running: Option<u64>,
    /// Memory that the Running tasks of one tenant may have together, in bytes, each counted with its limit of memory: no
    /// bound of its own where it is not set.
    #[arg(long, env = "TASKCELL_MAX_TENANT_MEMORY_BYTES", value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..=MOST))]
    pub max_tenant_memory_bytes: Option<u64>,
    /// CPU time of one tenant's tasks in an hour, in milliseconds: no bound where it is not set.
    #[arg(long, env = "TASKCELL_TENANT_CPU_MS_PER_HOUR", value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=MOST))]
    pub tenant_cpu_ms_per_hour: Option<u64>,
    /// Tasks that a tenant may create in a second, for long: no bound where it is not set.
    #[arg(long, env = "TASKCELL_SUBMIT_RATE", value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=MOST))]
    pub submit_rate: Option<u64>,
    /// Tasks that a tenant may create at once, where it has a rate: as many as in a second where it is not set.
    #[arg(long, env = "TASKCELL_SUBMIT_BURST", value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=MOST))]
    pub submit_burst: Option<u64>,
    /// Changes that a tenant's keys may ask for in an hour, of those that the audit log tells of; no `DELETE`
    /// counts.
    #[arg(long, env = "TASKCELL_CHANGES_PER_HOUR", default_value_t = 3600, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(..=MOST))]
    pub changes_per_hour: u64,
    /// How many schedules a tenant may have.
    #[arg(long, env = "TASKCELL_MAX_SCHEDULES", default_value_t = 1000, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    pub max_schedules: u64,
    /// How many secrets a tenant may have.
    #[arg(long, env = "TASKCELL_MAX_SECRETS", default_value_t = 1000, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(..=100_000))]
    pub max_secrets: u64,
    /// How many task types a tenant may have.
    #[arg(long, env = "TASKCELL_MAX_TASK_TYPES", default_value_t = 1000, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(..=100_000))]
    pub max_task_types: u64,
    /// Bytes of all versions of a tenant's task types.
    #[arg(long, env = "TASKCELL_COMPONENT_QUOTA_BYTES", default_value_t = 4 << 30, value_name = "BYTES")]
    pub component_quota_bytes: u64,
    /// Bytes of the largest component that can be uploaded.
    #[arg(long, env = "TASKCELL_MAX_COMPONENT_BYTES", default_value_t = 32 << 20, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..=256 << 20))]
    pub max_component_bytes: u64,
    /// Memory that compiling an uploaded component may use, in bytes of address space.
    #[arg(long, env = "TASKCELL_COMPILE_MEMORY_BYTES", default_value_t = 4 << 30, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(64 << 20..))]
    pub compile_memory_bytes: u64,
    /// CPU time that compiling an uploaded component may take, in milliseconds; whole seconds count.
    #[arg(long, env = "TASKCELL_COMPILE_CPU_MS", default_value_t = 60_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1000..=3_600_000))]
    pub compile_cpu_ms: u64,
    /// How long tasks that have ended are kept with their results, in milliseconds.
    #[arg(long, env = "TASKCELL_RETENTION", default_value_t = 7 * 24 * 60 * 60 * 1000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=100 * 366 * 24 * 60 * 60 * 1000))]
    pub retention: u64,
    /// How many days it is kept what each tenant used.
    #[arg(long, env = "TASKCELL_USAGE_RETENTION", default_value_t = 400, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub usage_retention: u32,
    /// How many days lines of the audit log are kept.
    #[arg(long, env = "TASKCELL_AUDIT_RETENTION", default_value_t = 400, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub audit_retention: u32,
    /// Bytes of the largest object.
    #[arg(long, env = "TASKCELL_MAX_OBJECT_BYTES", default_value_t = 16 << 20, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..=1 << 29))]
    pub max_object_bytes: u64,
    /// Bytes of all objects of a tenant.
    #[arg(long, env = "TASKCELL_OBJECT_QUOTA_BYTES", default_value_t = 1 << 30, value_name = "BYTES")]
    pub object_quota_bytes: u64,
    /// How many objects a tenant may keep.
    #[arg(long, env = "TASKCELL_OBJECT_QUOTA_COUNT", default_value_t = 100_000, value_name = "COUNT")]
    pub object_quota_count: u64,
    /// Bytes of the largest value that a task may keep with `wasi:keyvalue`.
    #[arg(long, env = "TASKCELL_MAX_VALUE_BYTES", default_value_t = 1 << 20, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..=1 << 29))]
    pub max_value_bytes: u64,
    /// Bytes of all keys and values of a tenant.
    #[arg(long, env = "TASKCELL_KEYVALUE_QUOTA_BYTES", default_value_t = 1 << 30, value_name = "BYTES")]
    pub keyvalue_quota_bytes: u64,
    /// How many keys a tenant may keep.
    #[arg(long, env = "TASKCELL_KEYVALUE_QUOTA_COUNT", default_value_t = 1_000_000, value_name = "COUNT")]
    pub keyvalue_quota_count: u64,
    /// Bytes of the log lines that are kept of a tenant's tasks; more are dropped.
    #[arg(long, env = "TASKCELL_LOG_QUOTA_BYTES", default_value_t = 10 << 30, value_name = "BYTES")]
    pub log_quota_bytes: u64,
    /// Networks that tasks may be granted to reach beside the public internet, such as 10.1.0.0/16: a list with commas.
    #[arg(long, env = "TASKCELL_ALLOW_NETWORK", value_name = "NETWORKS", value_delimiter = ',')]
    pub allow_network: Vec<Network>,
    /// Addresses of names that tasks reach, instead of looking them up: HOST=ADDRESS, a list with commas.
    #[arg(long, env = "TASKCELL_RESOLVE", value_name = "HOST=ADDRESS", value_delimiter = ',', value_parser = resolved)]
    pub resolve: Vec<(String, IpAddr)>,
    /// A PEM file of authorities that tasks' HTTPS trusts beside the public ones.
    #[arg(long, env = "TASKCELL_HTTP_CA", value_name = "FILE")]
    pub http_ca: Option<PathBuf>,
    /// A file with the key that secrets are sealed with: 32 random bytes, as base64 or 64 hexadecimal digits. Outside of the data directory, and its owner's alone.
    #[arg(long, env = "TASKCELL_SECRET_KEY_FILE", value_name = "FILE")]
    pub secret_key_file: Option<PathBuf>,
    /// HTTP requests that an attempt may make.
    #[arg(long, env = "TASKCELL_HTTP_REQUESTS", default_value_t = 1000, value_name = "COUNT")]
    pub http_requests: u64,
    /// HTTP requests that a tenant's tasks may make in an hour: no bound where it is not set.
    #[arg(long, env = "TASKCELL_HTTP_REQUESTS_PER_HOUR", value_name = "COUNT")]
    pub http_requests_per_hour: Option<u64>,
    /// HTTP connections of an attempt at once; others wait for their turn.
    #[arg(long, env = "TASKCELL_HTTP_CONNECTIONS", default_value_t = 16, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub http_connections: u32,
    /// HTTP connections of all attempts at once; others wait for their turn.
    #[arg(long, env = "TASKCELL_MAX_HTTP_CONNECTIONS", default_value_t = 512, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_http_connections: u32,
    /// Bytes of the body of a task's HTTP request, and of its response.
    #[arg(long, env = "TASKCELL_HTTP_BODY_BYTES", default_value_t = 16 << 20, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    pub http_body_bytes: u64,
    /// How long connecting for a task may take, the head of a response, and each pause in it, in milliseconds.
    #[arg(long, env = "TASKCELL_HTTP_TIMEOUT", default_value_t = 30_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub http_timeout: u64,
    /// What an attempt gets where neither its type nor the task says otherwise.
    #[command(flatten)]
    pub defaults: DefaultLimits,
    /// The most that can be asked for.
    #[command(flatten)]
    pub ceilings: MaxLimits,
}

macro_rules! limit_args {
    ($(#[$doc:meta])* $name:ident, $base:expr, $($arg:ident $flag:literal $env:literal $limit:ident $help:literal;)*) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Args)]
        pub struct $name {
            $(
                #[doc = $help]
                #[arg(long = $flag, env = $env, default_value_t = $base.$limit, value_parser = clap::value_parser!(u64).range(1..))]
                pub $arg: u64,
            )*
        }

        impl $name {
            /// As limits.
            pub fn limits(&self) -> Limits {
                Limits { $($limit: self.$arg,)* }
            }
        }
    };
}

limit_args! {
    /// The limits where nobody says otherwise.
    DefaultLimits, Limits::DEFAULT,
    default_fuel "default-fuel" "TASKCELL_DEFAULT_FUEL" fuel "Default fuel of an attempt.";
    default_cpu_ms "default-cpu-ms" "TASKCELL_DEFAULT_CPU_MS" cpu_ms "Default CPU time in milliseconds.";
    default_timeout_ms "default-timeout-ms" "TASKCELL_DEFAULT_TIMEOUT_MS" timeout_ms "Default wall-clock time in milliseconds.";
    default_memory_bytes "default-memory-bytes" "TASKCELL_DEFAULT_MEMORY_BYTES" memory_bytes "Default for all memories and tables together.";
    default_host_memory_bytes "default-host-memory-bytes" "TASKCELL_DEFAULT_HOST_MEMORY_BYTES" host_memory_bytes "Default for what the host holds for an attempt.";
    default_output_bytes "default-output-bytes" "TASKCELL_DEFAULT_OUTPUT_BYTES" output_bytes "Default size of an output.";
    default_log_bytes "default-log-bytes" "TASKCELL_DEFAULT_LOG_BYTES" log_bytes "Default size of an attempt's log.";
    default_input_bytes "default-input-bytes" "TASKCELL_DEFAULT_INPUT_BYTES" input_bytes "Default size of an input.";
}

limit_args! {
    /// The ceilings.
    MaxLimits, Limits::CEILING,
    max_fuel "max-fuel" "TASKCELL_MAX_FUEL" fuel "Most fuel of an attempt.";
    max_cpu_ms "max-cpu-ms" "TASKCELL_MAX_CPU_MS" cpu_ms "Most CPU time in milliseconds.";
    max_timeout_ms "max-timeout-ms" "TASKCELL_MAX_TIMEOUT_MS" timeout_ms "Most wall-clock time in milliseconds.";
    max_memory_bytes "max-memory-bytes" "TASKCELL_MAX_MEMORY_BYTES" memory_bytes "Most for all memories and tables together.";
    max_host_memory_bytes "max-host-memory-bytes" "TASKCELL_MAX_HOST_MEMORY_BYTES" host_memory_bytes "Most for what the host holds for an attempt.";
    max_output_bytes "max-output-bytes" "TASKCELL_MAX_OUTPUT_BYTES" output_bytes "Largest output.";
    max_log_bytes "max-log-bytes" "TASKCELL_MAX_LOG_BYTES" log_bytes "Largest log of an attempt.";
    max_input_bytes "max-input-bytes" "TASKCELL_MAX_INPUT_BYTES" input_bytes "Largest input.";
}

impl Command {
    /// Reads the command line, the environment and the file it names.
    ///
    /// What is wrong in the flags ends the process here, with the usage, as is the custom of
    /// command lines; what is wrong in the file or does not fit together is an error.
    pub fn load() -> anyhow::Result<Command> {
        let args: Vec<OsString> = std::env::args_os().collect();
        // Once without the file, to learn where it is, and so that a wrong flag is told first.
        let first = Cli::command().get_matches_from(&args);
        let mut command = Cli::command();
        let file = first.subcommand_matches("serve").and_then(|serve| serve.get_one::<PathBuf>("config"));
        if let Some(path) = file {
            command = with_file(command, path)?;
        }
        let matches = command.try_get_matches_from(&args).or_else(|error| match file {
            // Without it there was nothing wrong.
            Some(path) => Err(anyhow!("{}: {}", path.display(), in_one_line(&error))),
            None => error.exit(),
        })?;
        let command = Cli::from_arg_matches(&matches)?.command;
        if let Command::Serve(config) = &command {
            config.check()?;
        }
        Ok(command)
    }
}

/// A name and an address it has.
fn resolved(text: &str) -> Result<(String, IpAddr), &'static str> {
    let (host, address) = text.split_once('=').ok_or("must be HOST=ADDRESS")?;
    let address = address.parse().map_err(|_| "what comes after the = must be an IP address")?;
    Ok((host.to_ascii_lowercase(), address))
}

impl Config {
    /// What tasks may have of HTTP.
    pub fn http(&self) -> HttpSettings {
        let mut resolve: HashMap<String, Vec<IpAddr>> = HashMap::new();
        for (host, address) in &self.resolve {
            resolve.entry(host.clone()).or_default().push(*address);
        }
        HttpSettings {
            allowed: self.allow_network.clone(),
            resolve,
            authorities: self.http_ca.clone(),
            max_connections: self.max_http_connections as usize,
            limits: HttpLimits {
                requests: self.http_requests,
                connections: self.http_connections as usize,
                body_bytes: self.http_body_bytes,
                timeout: std::time::Duration::from_millis(self.http_timeout),
            },
        }
    }

    /// What a tenant may have that has no quotas of its own.
    pub fn quotas(&self) -> Quotas {
        Quotas {
            pending_tasks: Some(self.max_tenant_pending),
            running_tasks: self.max_tenant_running,
            running_memory_bytes: self.max_tenant_memory_bytes,
            cpu_ms_per_hour: self.tenant_cpu_ms_per_hour,
            submitted_per_second: self.submit_rate,
            submit_burst: self.submit_burst,
            task_types: Some(self.max_task_types),
            component_bytes: Some(self.component_quota_bytes),
            objects: Some(self.object_quota_count),
            object_bytes: Some(self.object_quota_bytes),
            log_bytes: Some(self.log_quota_bytes),
            http_requests_per_hour: self.http_requests_per_hour,
            changes_per_hour: Some(self.changes_per_hour),
            event_streams: Some(u64::from(self.max_event_streams)),
            schedules: Some(self.max_schedules),
            secrets: Some(self.max_secrets),
            keyvalue_keys: Some(self.keyvalue_quota_count),
            keyvalue_bytes: Some(self.keyvalue_quota_bytes),
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        let defaults = self.defaults.limits();
        for ((name, default), (_, ceiling)) in defaults.iter().zip(self.ceilings.limits().iter()) {
            if default > ceiling {
                let flag = name.replace('_', "-");
                bail!(
                    "--default-{flag} is {default}, above --max-{flag}, which is {ceiling}: lower the one or raise the other"
                );
            }
        }
        if self.ceilings.max_memory_bytes > 4 << 30 {
            bail!("--max-memory-bytes can be at most 4294967296: a 32-bit memory is no larger");
        }
        // A value in the database is at most 1,000,000,000 bytes.
        let ceilings = self.ceilings.limits();
        for (name, bytes) in
            [("input", ceilings.input_bytes), ("output", ceilings.output_bytes), ("log", ceilings.log_bytes)]
        {
            if bytes > 1 << 29 {
                bail!("--max-{name}-bytes can be at most {}", 1 << 29);
            }
        }
        if u64::from(u32::MAX) < self.ceilings.max_timeout_ms {
            bail!("--max-timeout-ms can be at most {}", u32::MAX);
        }
        Ok(())
    }
}

/// What is wrong, without the advice on the command line that follows an empty line.
fn in_one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let told: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    told.join(" ").trim_start_matches("error: ").to_owned()
}

/// The command line with the file's settings as its defaults: so what wins over what, what a value
/// may be, and which there are is said once.
fn with_file(command: clap::Command, path: &Path) -> anyhow::Result<clap::Command> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
    let table: toml::Table =
        text.parse().with_context(|| format!("the configuration file {} is not TOML", path.display()))?;
    let mut settings = Vec::new();
    for (key, value) in table {
        let value = match value {
            toml::Value::String(value) => value,
            toml::Value::Integer(value) => value.to_string(),
            toml::Value::Array(values) if values.iter().all(toml::Value::is_str) => {
                values.iter().filter_map(toml::Value::as_str).collect::<Vec<_>>().join(",")
            }
            other => bail!("{}: {key} cannot be a {}", path.display(), other.type_str()),
        };
        settings.push((key, value));
    }
    let known: Vec<String> = command
        .find_subcommand("serve")
        .map(|serve| serve.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned)).collect())
        .unwrap_or_default();
    for (key, _) in &settings {
        if !known.contains(key) || key == "config" {
            bail!("{}: there is no setting {key}; `taskcell serve --help` lists them", path.display());
        }
    }
    Ok(command.mut_subcommand("serve", |serve| {
        settings
            .into_iter()
            .fold(serve, |serve, (key, value)| serve.mut_arg(key.replace('-', "_"), |arg| arg.default_value(value)))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_setting_has_a_variable_of_its_name() {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").unwrap();
        for arg in serve.get_arguments().filter(|arg| arg.get_id() != "help") {
            let long = arg.get_long().unwrap();
            let variable = arg.get_env().unwrap_or_else(|| panic!("--{long} has no variable"));
            assert_eq!(variable.to_str().unwrap(), format!("TASKCELL_{}", long.replace('-', "_").to_uppercase()));
            assert_eq!(arg.get_id().as_str(), long.replace('-', "_"), "the file's keys rely on it");
        }
    }

    #[test]
    fn every_default_is_within_its_ceiling() {
        let matches = Cli::command().get_matches_from(["taskcell", "serve"]);
        let Command::Serve(config) = Cli::from_arg_matches(&matches).unwrap().command else { panic!() };
        config.check().unwrap();
    }
}
