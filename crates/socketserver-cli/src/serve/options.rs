//! Builders of servers from the options of the command line.

use std::io;

use socketserver::transport::{StreamTransport, Tcp, Udp, UnixDatagram, UnixStream, UnixTransport};
use socketserver::{
    Admission, Builder, Concurrency, Displacement, Forking, Green, OverloadPolicy, Pooled,
    ProxyProtocol, Server, ServerHandle, Threading, Timeouts, Tls, Transport,
};

use super::IDLE;
use crate::cli::{Policy, Proxy, ServerOptions};
use crate::endpoint::Endpoint;
use crate::service_manager;

pub(super) fn threading(options: &ServerOptions) -> Threading {
    let model = Threading::new().overload_policy(policy(options));
    limited(options, model, Threading::max_threads)
}

pub(super) fn forking(options: &ServerOptions) -> Forking {
    let model = Forking::new().overload_policy(policy(options));
    limited(options, model, Forking::max_children)
}

pub(super) fn pooled(options: &ServerOptions) -> Pooled {
    let model = Pooled::new()
        .overload_policy(policy(options))
        .max_idle(IDLE);
    limited(options, model, Pooled::workers)
}

pub(super) fn green(options: &ServerOptions) -> Green {
    let model = Green::new().overload_policy(policy(options));
    limited(options, model, Green::max_requests)
}

fn limited<M>(options: &ServerOptions, model: M, limit: impl FnOnce(M, usize) -> M) -> M {
    match options.workers {
        Some(n) => limit(model, n as usize),
        None => model,
    }
}

fn policy(options: &ServerOptions) -> OverloadPolicy {
    match options.at_limit {
        Policy::Wait => OverloadPolicy::Wait,
        Policy::Reject => OverloadPolicy::Reject,
        Policy::Queue => OverloadPolicy::Queue {
            patience: options.queue_time,
            places: options.queue_places as usize,
        },
    }
}

pub(super) fn builder<T: Transport, C: Concurrency>(
    options: &ServerOptions,
    model: C,
) -> Builder<T, C> {
    let builder = Server::<T, C>::builder();
    let builder = match service_manager::watchdog() {
        // The accept loop reports to the watchdog: if the loop hangs, no client is served.
        Some(interval) => builder.service_actions(interval, || {
            service_manager::alive();
            Ok(())
        }),
        None => builder,
    };
    let displacement = if options.no_displacement {
        Displacement::off()
    } else {
        options.displacement
    };
    builder
        .concurrency(model)
        .displacement(displacement)
        .timeouts(timeouts::<T>(options))
        .admission(admission(options))
}

/// Sets the mode and the owner of a socket that has a file.
///
/// # Errors
/// Returns an error if the user for `--user` does not exist.
pub(crate) fn of_file<T: UnixTransport, C: Concurrency>(
    builder: Builder<T, C>,
    options: &ServerOptions,
) -> anyhow::Result<Builder<T, C>> {
    let builder = builder.mode(options.unix_mode);
    Ok(match options.privileges.look_up()? {
        Some(identity) => {
            let (user, group) = identity.numbers();
            builder.owner(Some(user), Some(group))
        }
        None => builder,
    })
}

/// Applies changed limits and rules to a running server.
pub(crate) fn apply(
    options: &ServerOptions,
    handle: &ServerHandle,
    endpoint: &Endpoint,
) -> io::Result<()> {
    handle.set_timeouts(match endpoint {
        Endpoint::Tcp(_) | Endpoint::Tls(_) | Endpoint::Http(_) | Endpoint::Https(_) => {
            timeouts::<Tcp>(options)
        }
        Endpoint::Udp(_) => timeouts::<Udp>(options),
        Endpoint::Unix(_) => timeouts::<UnixStream>(options),
        Endpoint::Unixgram(_) => timeouts::<UnixDatagram>(options),
        Endpoint::Inherited(_) => {
            unreachable!("inherited endpoints are resolved before servers are built")
        }
    })?;
    handle.set_admission(admission(options));
    Ok(())
}

fn timeouts<T: Transport>(options: &ServerOptions) -> Timeouts {
    let timeouts = T::default_timeouts()
        .first_byte(options.first_byte_timeout.0)
        .idle(options.idle_timeout.0)
        .receive_rate(options.min_receive_rate.0)
        .send_rate(options.min_send_rate.0)
        .request(options.request_timeout.0);
    match options.write_timeout {
        Some(limit) => timeouts.write(limit.0),
        None => timeouts,
    }
}

pub(super) fn udp_builder<C: Concurrency>(options: &ServerOptions, model: C) -> Builder<Udp, C> {
    let builder = builder(options, model).max_amplification(options.max_amplification);
    if options.reject_low_ports {
        builder.reject_low_ports()
    } else {
        builder
    }
}

pub(super) fn stream_builder<T: StreamTransport, C: Concurrency>(
    options: &ServerOptions,
    model: C,
) -> Builder<T, C> {
    let mut builder = builder::<T, C>(options, model);
    if let Some(notice) = &options.rejection_message {
        builder = builder.rejection_message(format!("{notice}\n"));
    }
    if !options.proxy_from.is_empty() {
        builder = builder.proxy_protocol(proxies(options));
    }
    builder
}

/// Returns a builder for a server of browsers. The rejection message is a complete HTTP response.
pub(super) fn web_builder<C: Concurrency>(
    options: &ServerOptions,
    model: C,
    tls: Option<Tls>,
) -> Builder<Tcp, C> {
    let mut builder = stream_builder::<Tcp, C>(options, model);
    if let Some(notice) = &options.rejection_message {
        let length = notice.len() + 1;
        builder = builder.rejection_message(format!(
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{notice}\n"
        ));
    }
    match tls {
        Some(tls) => builder.tls(tls),
        None => builder,
    }
}

fn proxies(options: &ServerOptions) -> ProxyProtocol {
    let proxies = ProxyProtocol::new().timeout(options.proxy_timeout);
    let each = options.proxy_from.iter();
    each.fold(proxies, |proxies, proxy| match proxy {
        Proxy::At(network) => proxies.trust(*network),
        Proxy::Unix => proxies.trust_unix(),
    })
}

fn admission(options: &ServerOptions) -> Admission {
    let denied = options.deny.iter();
    let admission = denied.fold(Admission::new(), |all, network| all.deny(*network));
    let allowed = options.allow.iter();
    let mut admission = allowed.fold(admission, |all, network| all.allow(*network));
    if let Some(max) = options.max_active {
        admission = admission.max_active(max as usize);
    }
    if let Some(max) = options.max_per_peer {
        admission = admission.max_per_peer(max);
    }
    if let Some(rate) = options.rate {
        admission = admission.rate(rate);
    }
    if let Some(rate) = options.rate_per_peer {
        admission = admission.rate_per_peer(rate);
    }
    admission
}
