//! What shall happen at which point, and how a running process learns it: the one file that the library and the
//! tests share (`tests/common/shim.rs` includes it).
//!
//! A plan is one line, `id=7 action=errno:28 skip=3 times=1 ops=write,sync`. The process reads it again at each point,
//! so that a test can arm a driver that runs: it replaces the file by rename. An `id` that the process has not seen
//! starts the counting again.

use std::fmt;
use std::str::FromStr;

/// Environment variable with the directories whose files are watched, separated by `:`. Sockets that listen below them
/// are watched, too.
pub const WATCH: &str = "FAULT_SHIM_WATCH";
/// Environment variable with the directory that holds the plan and the log.
pub const DIRECTORY: &str = "FAULT_SHIM_DIR";
/// Environment variable with a file that is locked before the process is ended. What other threads do under this lock
/// is not cut in half; for hardware, whose steps are whole whatever happens to the process that asked for them.
pub const LOCK: &str = "FAULT_SHIM_LOCK";
/// File with the plan; there is none while nothing shall happen.
pub const PLAN: &str = "plan";
/// File to which each point is logged as one line.
pub const LOG: &str = "points";
/// Exit status of a process that was ended by a plan; the same as that of the NVML simulator.
pub const CRASH_STATUS: i32 = 86;

/// A kind of point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A file is opened for writing, which may create it.
    Open,
    /// A file is written.
    Write,
    /// A file's length is set.
    Truncate,
    /// A file gets another name.
    Rename,
    /// A name is removed.
    Unlink,
    /// A file gets a second name.
    Link,
    /// A directory is made.
    Mkdir,
    /// A file or directory is forced to the disk.
    Sync,
    /// Bytes go out on a connection to a watched socket.
    Reply,
}

impl Op {
    /// All kinds.
    pub const ALL: [Self; 9] = [
        Self::Open,
        Self::Write,
        Self::Truncate,
        Self::Rename,
        Self::Unlink,
        Self::Link,
        Self::Mkdir,
        Self::Sync,
        Self::Reply,
    ];

    /// Its name in plans and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Write => "write",
            Self::Truncate => "truncate",
            Self::Rename => "rename",
            Self::Unlink => "unlink",
            Self::Link => "link",
            Self::Mkdir => "mkdir",
            Self::Sync => "sync",
            Self::Reply => "reply",
        }
    }
}

impl FromStr for Op {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|it| it.name() == text)
            .ok_or_else(|| format!("unknown operation `{text}`"))
    }
}

/// What happens at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The process ends before the operation.
    CrashBefore,
    /// It ends after the operation.
    CrashAfter,
    /// The operation has no effect and fails with this `errno`.
    Errno(i32),
    /// A write writes the first half only; what is met after that fails with this `errno`.
    Short(i32),
    /// The operation waits until the plan is gone or another one, as on a disk that does not answer.
    Hold,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CrashBefore => f.write_str("crash_before"),
            Self::CrashAfter => f.write_str("crash_after"),
            Self::Errno(errno) => write!(f, "errno:{errno}"),
            Self::Short(errno) => write!(f, "short:{errno}"),
            Self::Hold => f.write_str("hold"),
        }
    }
}

impl FromStr for Action {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().map_err(|_| format!("`{text}` is no errno"));
        match text.split_once(':') {
            None if text == "crash_before" => Ok(Self::CrashBefore),
            None if text == "crash_after" => Ok(Self::CrashAfter),
            None if text == "hold" => Ok(Self::Hold),
            Some(("errno", errno)) => Ok(Self::Errno(number(errno)?)),
            Some(("short", errno)) => Ok(Self::Short(number(errno)?)),
            _ => Err(format!("unknown action `{text}`")),
        }
    }
}

/// What shall happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Tells this plan from the one before.
    pub id: u64,
    /// What happens.
    pub action: Action,
    /// So many points of these kinds pass first.
    pub skip: u32,
    /// Then it happens so often; `None` is for ever.
    pub times: Option<u32>,
    /// Kinds of points that count; the others pass.
    pub ops: Vec<Op>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "id={} action={} skip={}", self.id, self.action, self.skip)?;
        if let Some(times) = self.times {
            write!(f, " times={times}")?;
        }
        let ops: Vec<&str> = self.ops.iter().map(|it| it.name()).collect();
        write!(f, " ops={}", ops.join(","))
    }
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut plan =
            Self { id: 0, action: Action::CrashBefore, skip: 0, times: None, ops: Op::ALL.to_vec() };
        let mut has_action = false;
        for field in text.split_whitespace() {
            let Some((key, value)) = field.split_once('=') else {
                return Err(format!("`{field}` is not key=value"));
            };
            let not_a_number = |_| format!("`{field}` has no number");
            match key {
                "id" => plan.id = value.parse().map_err(not_a_number)?,
                "skip" => plan.skip = value.parse().map_err(not_a_number)?,
                "times" => plan.times = Some(value.parse().map_err(not_a_number)?),
                "action" => {
                    plan.action = value.parse()?;
                    has_action = true;
                }
                "ops" => plan.ops = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
                _ => return Err(format!("unknown key `{key}`")),
            }
        }
        if has_action { Ok(plan) } else { Err("there is no action".to_owned()) }
    }
}
