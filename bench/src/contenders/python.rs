//! The servers in Python, on an inherited socket. The interpreter is `python3` in the search path,
//! or the program that the environment variable `PYTHON` names.

use std::env;
use std::fmt::Display;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::bail;
use rustix::io::FdFlags;

use super::Contender;

const SCRIPT: &str = include_str!("python.py");

/// Replaces this process with the interpreter.
pub(super) fn serve(
    contender: Contender,
    socket: &impl AsFd,
    address: &impl Display,
    buffer: usize,
    stop: bool,
) -> anyhow::Result<()> {
    let model = match contender {
        Contender::PythonThreading => "threading",
        Contender::PythonAsyncio => "asyncio",
        Contender::PythonGevent => "gevent",
        other => bail!("{other} is not a Python server"),
    };
    rustix::io::fcntl_setfd(socket, FdFlags::empty())?;
    let error = interpreter()
        .args(["-c", SCRIPT, model])
        .arg(socket.as_fd().as_raw_fd().to_string())
        .arg(address.to_string())
        .arg(buffer.to_string())
        .args(stop.then_some("--stop"))
        .exec();
    Err(error.into())
}

fn interpreter() -> Command {
    Command::new(env::var_os("PYTHON").unwrap_or_else(|| "python3".into()))
}

pub(super) fn unavailable_reason(contender: Contender) -> Option<String> {
    let needed = match contender {
        Contender::PythonGevent => ["python", "gevent"].as_slice(),
        _ => &["python"],
    };
    let lacks = needed.iter().find(|part| version(part).is_none())?;
    Some(match *lacks {
        "gevent" => "this Python has no gevent".into(),
        _ => "python3 is not installed".into(),
    })
}

pub(super) fn versions() -> Vec<String> {
    let known = ["python", "gevent"].map(|part| Some(format!("{part} {}", version(part)?)));
    known.into_iter().flatten().collect()
}

fn version(part: &str) -> Option<String> {
    let program = match part {
        "gevent" => "import gevent; print(gevent.__version__)",
        _ => "import platform; print(platform.python_version())",
    };
    let output = interpreter()
        .args(["-c", program])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let version = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| version.trim().into())
}
