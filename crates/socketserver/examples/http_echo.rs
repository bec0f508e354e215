//! HTTP: sends back the body of each request, whatever its method.
//!
//! Run it with `cargo run -p socketserver --features http --example http_echo -- 127.0.0.1:8000`,
//! then
//! `curl -d hello http://127.0.0.1:8000/`.

use std::io::Read;

use socketserver::http::{Http, Request, Response};
use socketserver::{Result, ThreadingTcpServer};

fn main() -> Result<()> {
    let address = std::env::args().nth(1);
    let address = address.as_deref().unwrap_or("127.0.0.1:8000");
    let echo = Http::new().handler_fn(|request: &mut Request<'_>| {
        // At most `HttpLimits::body`, which is 1 MiB by default.
        let mut body = Vec::new();
        request.body().read_to_end(&mut body)?;
        Ok(Response::bytes(body))
    });
    ThreadingTcpServer::bind(address, echo)?.serve_forever()?;
    Ok(())
}
