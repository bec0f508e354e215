//! The default contenders of each benchmark: bare loops, this project, others.

use crate::contenders::Contender::{
    self, Actix, Epoll, Forking, Green, GreenKeepAlive, Hyper, IoUring, May, Monoio, Nginx, Pooled,
    PooledKeepAlive, PythonAsyncio, PythonGevent, PythonThreading, Sequential, StdThread,
    Threading, TokioCurrent, TokioMulti,
};

/// For connections that stay open. A sequential server has one connection at a time. A pooled
/// server has one per thread, unless connections are suspended between messages.
pub(super) const STREAMS: &[Contender] = &[
    Epoll,
    IoUring,
    Green,
    GreenKeepAlive,
    Sequential,
    Threading,
    Forking,
    PooledKeepAlive,
    TokioCurrent,
    TokioMulti,
    Actix,
    Monoio,
    May,
    StdThread,
    PythonThreading,
    PythonAsyncio,
    PythonGevent,
];

/// Those of `STREAMS` that serve many connections with few threads.
pub(super) const EVENT_DRIVEN: &[Contender] = &[
    Epoll,
    IoUring,
    Green,
    GreenKeepAlive,
    TokioCurrent,
    TokioMulti,
    Actix,
    Monoio,
    May,
];

/// For short connections.
pub(super) const CHURN: &[Contender] = &[
    Epoll,
    IoUring,
    Green,
    Sequential,
    Threading,
    Forking,
    Pooled,
    TokioCurrent,
    TokioMulti,
    Actix,
    Monoio,
    May,
    StdThread,
    PythonThreading,
    PythonAsyncio,
    PythonGevent,
];

/// For datagrams.
pub(super) const DATAGRAMS: &[Contender] = &[
    Epoll,
    Green,
    Sequential,
    Threading,
    Forking,
    Pooled,
    TokioCurrent,
    TokioMulti,
    Monoio,
    May,
    StdThread,
    PythonThreading,
    PythonAsyncio,
    PythonGevent,
];

/// For many open connections.
pub(super) const MANY: &[Contender] = &[
    Epoll,
    IoUring,
    Green,
    GreenKeepAlive,
    Threading,
    Forking,
    PooledKeepAlive,
    TokioCurrent,
    TokioMulti,
    Actix,
    Monoio,
    May,
    StdThread,
    PythonThreading,
    PythonAsyncio,
    PythonGevent,
];

/// Servers of files over HTTP.
pub(super) const HTTP: &[Contender] = &[Green, Threading, Pooled, Nginx, Hyper];

/// Servers that can be stopped cleanly.
pub(super) const STOP: &[Contender] = &[
    Green,
    GreenKeepAlive,
    Sequential,
    Threading,
    Forking,
    Pooled,
    PooledKeepAlive,
    TokioCurrent,
    TokioMulti,
    Actix,
    PythonThreading,
    PythonAsyncio,
    PythonGevent,
];
