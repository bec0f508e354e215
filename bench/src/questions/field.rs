//! Who takes part in which question, if nobody says otherwise: the floor, this project, and others.

use crate::contenders::Contender::{
    self, Actix, Epoll, Forking, Green, GreenKeepAlive, Hyper, IoUring, May, Monoio, Nginx, Pooled,
    PooledKeepAlive, PythonAsyncio, PythonGevent, PythonThreading, Sequential, StdThread,
    Threading, TokioCurrent, TokioMulti,
};

/// Connections that stay open. A sequential server has one at a time, and a pooled one as many as
/// it has threads, unless they are kept alive between messages.
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

/// Of those, the ones that serve many connections with few threads.
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

/// Connections that come and go.
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

/// Connections that are many.
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

/// Those that serve files over HTTP.
pub(super) const HTTP: &[Contender] = &[Green, Threading, Pooled, Nginx, Hyper];

/// Those that can be stopped.
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
