//! The admin console: commands about the running servers, typed on their terminal or piped in.
//!
//! This file executes the lines; `terminal.rs` reads them.

use std::fmt::Write;
use std::time::{Duration, Instant};

use socketserver::{ActiveRequest, GroupHandle, RequestId, ServerHandle};

use crate::cli::Model;
use crate::config::Reloader;
use crate::serve::BoundServers;
use crate::terminal::{self, Lines};
use crate::{escape, signals};

const HELP: &str = "\
list      show the connections, and the number of busy workers
kick ID   cancel a connection
stats     show totals since the start
lame      make /readyz fail, so that load balancers send no new clients; clients are still served
ready     make /readyz succeed again
reload    read the configuration again, as SIGHUP does
drain     stop accepting, let connections end, then exit
quit      cancel all connections and exit
help      show this list
";

/// The commands with which an operator controls a group of servers.
pub(crate) struct Console {
    group: GroupHandle,
    endpoints: Vec<Served>,
    model: Model,
    drain_timeout: Duration,
    reloader: Option<Reloader>,
    started: Instant,
    notes: Vec<Box<dyn Fn() -> String + Send>>,
    /// The text with which a command begins.
    prefix: &'static str,
}

struct Served {
    name: String,
    /// The number of requests that the server serves at once.
    limit: usize,
}

impl Console {
    pub(crate) fn new(bound: &BoundServers) -> Self {
        let endpoints = bound
            .listening
            .iter()
            .zip(&bound.limits)
            .map(|(endpoint, &limit)| Served {
                name: endpoint.to_string(),
                limit,
            })
            .collect();
        Self {
            group: bound.handle(),
            endpoints,
            model: bound.model,
            drain_timeout: bound.patience.drain,
            reloader: bound.reloader.clone(),
            started: Instant::now(),
            notes: Vec::new(),
            prefix: "",
        }
    }

    /// Adds a text of the program to the output of `stats`.
    pub(crate) fn with_note(mut self, note: impl Fn() -> String + Send + 'static) -> Self {
        self.notes.push(Box::new(note));
        self
    }

    /// Sets the text with which commands begin, for programs that use other lines of stdin
    /// themselves.
    pub(crate) fn with_prefix(mut self, prefix: &'static str) -> Self {
        self.prefix = prefix;
        self
    }

    /// Executes the lines of stdin while the servers run.
    pub(crate) fn attend(self, bound: &mut BoundServers) -> anyhow::Result<()> {
        let lines = Lines {
            prompt: "> ",
            greeting: "type help for the console's commands",
        };
        lines.attend(bound, move |line| {
            terminal::say(&self.obey(&String::from_utf8_lossy(line)));
        })
    }

    /// Executes a line and returns the text to show.
    pub(crate) fn obey(&self, line: &str) -> String {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            [] => String::new(),
            ["list"] => self.list(),
            ["kick", id] => self.kick(id),
            ["kick"] => "kick needs an ID; list shows the IDs\n".into(),
            ["stats"] => self.stats(),
            ["reload"] => match &self.reloader {
                Some(reloader) => reloader.reload(),
                None => {
                    "no configuration to reload: the program was started without --config\n".into()
                }
            },
            ["drain"] => {
                let limit = humantime::format_duration(self.drain_timeout);
                let answer = format!(
                    "draining; connections that have not ended after {limit} are cancelled\n"
                );
                self.stop(&answer, self.drain_timeout)
            }
            ["lame"] => self.set_lame(true),
            ["ready"] => self.set_lame(false),
            ["quit"] => self.stop("stopping\n", Duration::ZERO),
            ["help"] => self.help(),
            _ => format!(
                "{}{} is not a command. The commands are:\n{}\n{}",
                self.prefix,
                escape::printable(line.trim().as_bytes()),
                self.help(),
                self.list()
            ),
        }
    }

    /// Shows the text before the stop, because the process may end sooner than the text is shown.
    fn stop(&self, answer: &str, timeout: Duration) -> String {
        terminal::say(answer);
        signals::drain(&self.group, timeout, self.model);
        String::new()
    }

    fn set_lame(&self, lame: bool) -> String {
        self.group.set_lame(lame);
        let mut out = String::new();
        for (_, served, handle) in self.servers() {
            let _ = writeln!(out, "{}: {}", served.name, handle.state());
        }
        out
    }

    fn help(&self) -> String {
        let prefix = self.prefix;
        HELP.lines()
            .map(|line| format!("{prefix}{line}\n"))
            .collect()
    }

    fn servers(&self) -> impl Iterator<Item = (usize, &Served, &ServerHandle)> {
        self.endpoints
            .iter()
            .zip(self.group.handles())
            .enumerate()
            .map(|(index, (served, handle))| (index, served, handle))
    }

    fn list(&self) -> String {
        let mut out = String::new();
        for (index, served, handle) in self.servers() {
            let active = handle.active();
            let Served { name, limit } = served;
            let busy = active.len();
            let (model, state) = (self.model.name(), handle.state());
            let _ = writeln!(out, "{name}: {model}, {state}, {busy} of {limit} busy");
            if active.is_empty() {
                continue;
            }
            let mut rows = vec![["ID", "PEER", "AGE", "IN", "OUT", "STATE"].map(String::from)];
            rows.extend(active.iter().map(|request| self.row(index, request)));
            out += &table(&rows);
        }
        out
    }

    fn row(&self, endpoint: usize, request: &ActiveRequest) -> [String; 6] {
        let info = &request.info;
        // Ages are shown in whole seconds.
        let age = Duration::from_secs(info.age().as_secs());
        [
            self.label(endpoint, info.id()),
            // The address is already escaped.
            info.peer().to_string(),
            humantime::format_duration(age).to_string(),
            request.received.to_string(),
            request.sent.to_string(),
            request.state.to_string(),
        ]
    }

    /// Returns the label of a request. Each server numbers its own requests.
    fn label(&self, endpoint: usize, id: RequestId) -> String {
        match self.endpoints.len() {
            1 => id.to_string(),
            _ => format!("{}.{id}", endpoint + 1),
        }
    }

    fn kick(&self, label: &str) -> String {
        let Some((handle, id)) = self.find(label) else {
            return format!(
                "{} is not an ID; list shows the IDs\n",
                escape::printable(label.as_bytes())
            );
        };
        if handle.cancel(id) {
            format!("{label} is cancelled\n")
        } else {
            format!("{label} is not being served\n")
        }
    }

    fn find(&self, label: &str) -> Option<(&ServerHandle, RequestId)> {
        let (endpoint, id) = match label.split_once('.') {
            Some((endpoint, id)) => (endpoint.parse::<usize>().ok()?.checked_sub(1)?, id),
            None if self.endpoints.len() == 1 => (0, label),
            None => return None,
        };
        let id: u64 = id.parse().ok()?;
        Some((self.group.handles().get(endpoint)?, id.into()))
    }

    fn stats(&self) -> String {
        let up = Duration::from_secs(self.started.elapsed().as_secs());
        let mut out = format!("up {}\n", humantime::format_duration(up));
        for (_, served, handle) in self.servers() {
            let n = handle.counters();
            let active = handle.active();
            let received = active.iter().map(|r| r.received).sum::<u64>() + n.bytes_received;
            let sent = active.iter().map(|r| r.sent).sum::<u64>() + n.bytes_sent;
            let active = active.len();
            let _ = writeln!(
                out,
                "{}: {}, accepted {}, rejected {}, active {active}, ended {} (failed {}, panicked {}, \
                 protocol error {}, timed out {}, disconnected {}, slow consumers {}, displaced {}, cancelled {}, killed {}), \
                 received {received} bytes, sent {sent}",
                served.name,
                handle.state(),
                n.accepted,
                n.refused,
                n.ended,
                n.failed,
                n.panicked,
                n.protocol_error,
                n.timed_out,
                n.disconnected,
                n.slow_consumer,
                n.displaced,
                n.cancelled,
                n.killed,
            );
            // Most endpoints have no counts to show here.
            if n.truncated + n.dropped_by_kernel + n.amplification_refused > 0 {
                let _ = writeln!(
                    out,
                    "  datagrams: too long {}, dropped by the kernel {}, replies over \
                     --max-amplification {}",
                    n.truncated, n.dropped_by_kernel, n.amplification_refused,
                );
            }
        }
        for note in &self.notes {
            out += &note();
        }
        out
    }
}

/// Formats rows with columns that are as wide as their widest cells.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [_; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "  {cell:width$}");
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use socketserver::{Connection, ServerGroup, ThreadingTcpServer, handler_fn};

    fn console(endpoints: usize) -> (Console, ServerGroup) {
        let mut group = ServerGroup::new();
        for _ in 0..endpoints {
            let handler = handler_fn(|_: &mut Connection| Ok(()));
            group.add(ThreadingTcpServer::bind("127.0.0.1:0", handler).unwrap());
        }
        let served = |n| Served {
            name: format!("tcp://host:{n}"),
            limit: 7,
        };
        let console = Console {
            reloader: None,
            group: group.handle(),
            endpoints: (0..endpoints).map(served).collect(),
            model: Model::Threading,
            drain_timeout: Duration::from_secs(30),
            started: Instant::now(),
            notes: vec![Box::new(|| "a note\n".into())],
            prefix: "",
        };
        (console, group)
    }

    #[test]
    fn obey_answers_every_line() {
        let (console, _group) = console(1);
        assert_eq!(console.obey(" \t"), "");
        assert_eq!(
            console.obey("list"),
            "tcp://host:0: threading, bound, 0 of 7 busy\n"
        );
        assert!(console.obey(" stats ").ends_with("sent 0\na note\n"));
        assert_eq!(console.obey("help"), HELP);
        let unknown = console.obey("lis\u{1b}[2Jt now");
        assert!(
            unknown.starts_with("lis\\x1b[2Jt now is not a command"),
            "{unknown}"
        );
        assert!(unknown.contains("kick ID"));
        assert!(unknown.ends_with("0 of 7 busy\n"));
    }

    #[test]
    fn lame_and_ready_report_each_server() {
        let (console, group) = console(2);
        // The servers do not serve yet, so neither state applies; the setting takes effect when
        // they do.
        assert_eq!(
            console.obey("lame"),
            "tcp://host:0: bound\ntcp://host:1: bound\n"
        );
        drop(group);
        assert!(console.obey("ready").starts_with("tcp://host:0: closed\n"));
    }

    #[test]
    fn ids_contain_the_endpoint_if_there_are_several() {
        let (one, _group) = console(1);
        assert_eq!(one.obey("kick 3"), "3 is not being served\n");
        assert_eq!(one.obey("kick 1.3"), "1.3 is not being served\n");
        let (two, _group) = console(2);
        assert_eq!(two.obey("kick 2.3"), "2.3 is not being served\n");
        for bad in ["3", "0.3", "3.3", "x", "1.", ".1", "-1", "1.1.1"] {
            assert!(
                two.obey(&format!("kick {bad}"))
                    .ends_with("is not an ID; list shows the IDs\n")
            );
        }
        assert!(two.obey("kick").contains("ID"));
    }

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let rows = [["ID", "PEER"], ["1", "a"], ["100", "bcdef"]];
        let rows = rows.map(|row| row.map(String::from)).to_vec();
        assert_eq!(table(&rows), "  ID   PEER\n  1    a\n  100  bcdef\n");
    }
}
