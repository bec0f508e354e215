//! A file server on hyper and tokio. A file of up to 64 KiB is read at once, because it is in the
//! page cache. A larger file is streamed as in hyper's example `send_file`, but in 64 KiB
//! chunks.

use std::fs::File;
use std::io::{self, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::hyper::body::{Bytes, Frame, Incoming};
use ::hyper::header::{CONTENT_LENGTH, HeaderValue};
use ::hyper::server::conn::http1;
use ::hyper::service::service_fn;
use ::hyper::{Request, Response, StatusCode};
use futures_util::TryStreamExt;
use futures_util::stream::MapOk;
use http_body_util::{Either, Full, StreamBody};
use hyper_util::rt::TokioIo;
use tokio_util::io::ReaderStream;

use super::super::tokio::current;
use super::files;

const CHUNK: usize = 64 << 10;

type Chunks = MapOk<ReaderStream<tokio::fs::File>, fn(Bytes) -> Frame<Bytes>>;
type Body = Either<Full<Bytes>, StreamBody<Chunks>>;

pub(super) fn serve(listener: TcpListener, directory: &Path) -> anyhow::Result<()> {
    listener.set_nonblocking(true)?;
    let root: Arc<PathBuf> = Arc::new(files(directory));
    Ok(current().build()?.block_on(accept(listener, root))?)
}

async fn accept(listener: TcpListener, root: Arc<PathBuf>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let root = root.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let answer = answer(&root, &request);
                async { answer }
            });
            // An error affects only this client, and the load reports it.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn answer(root: &Path, request: &Request<Incoming>) -> io::Result<Response<Body>> {
    let name = request.uri().path().trim_start_matches('/');
    if name.split('/').any(|part| part == "..") {
        return Ok(missing());
    }
    let mut file = match File::open(root.join(name)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(missing()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    let body = if length <= CHUNK as u64 {
        let mut all = vec![0; usize::try_from(length).unwrap_or(CHUNK)];
        // `read_exact` needs two system calls fewer than reading to the end.
        file.read_exact(&mut all)?;
        Either::Left(Full::new(all.into()))
    } else {
        let chunks = ReaderStream::with_capacity(tokio::fs::File::from_std(file), CHUNK);
        let frame: fn(Bytes) -> Frame<Bytes> = Frame::data;
        Either::Right(StreamBody::new(chunks.map_ok(frame)))
    };
    let mut response = Response::new(body);
    // Without a length, hyper would send the stream with chunked coding.
    let length = HeaderValue::from(length);
    response.headers_mut().insert(CONTENT_LENGTH, length);
    Ok(response)
}

fn missing() -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}
