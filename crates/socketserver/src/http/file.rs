//! Files as responses: whole, in parts, or a 304 if the client has the file.

use std::fs::{File, Metadata};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::http::header::{ACCEPT_RANGES, CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED, RANGE};
use ::http::{HeaderMap, HeaderValue, Method, StatusCode};
use bytes::Bytes;
use httpdate::fmt_http_date;

use super::conditional::{Validators, Verdict};
use super::range::{RangeRequest, wanted};
use super::response::{ResponseBody, Segment};
use super::{RequestHead, Response};
use crate::Result;

impl Response {
    /// Returns a file as the request asks for it: the whole file (200), parts (206, 416), or no
    /// file if the client has it already (304) or requires another state of it (412). The response
    /// has the fields `ETag`, `Last-Modified` and `Accept-Ranges`.
    ///
    /// The kernel sends the bytes without a copy where it can
    /// ([`Connection::send_file`](crate::Connection::send_file)). The tag consists of the file's
    /// length, its inode, and the times of its last modification and its last change, in
    /// nanoseconds. A copy of the file on another server therefore has another tag. If the file
    /// becomes shorter while it is sent, the connection is reset.
    ///
    /// ```
    /// use socketserver::http::{Request, Response};
    /// use std::fs::File;
    ///
    /// fn respond(request: &mut Request<'_>) -> socketserver::Result<Response> {
    ///     Response::file(request, File::open("Cargo.toml")?, "text/plain; charset=utf-8")
    /// }
    /// ```
    ///
    /// # Errors
    /// Returns an error if the file's length cannot be determined, or if the media type has
    /// characters that a field must not have.
    pub fn file(request: &RequestHead, file: File, media_type: &str) -> Result<Self> {
        let metadata = file.metadata()?;
        let length = metadata.len();
        let now = SystemTime::now();
        let validators = Validators::of(&metadata, now);
        let mut base = HeaderMap::new();
        base.insert(ETAG, HeaderValue::from_str(&validators.etag)?);
        let modified = HeaderValue::from_str(&fmt_http_date(validators.modified))?;
        base.insert(LAST_MODIFIED, modified);
        let bare = |status| Ok(Self::new(status).with_fields(base.clone()));
        match validators.judge(request.headers()) {
            Verdict::NotModified => return bare(StatusCode::NOT_MODIFIED),
            Verdict::Failed => return bare(StatusCode::PRECONDITION_FAILED),
            Verdict::Proceed => {}
        }
        base.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        // RFC 9110, 14.2 defines ranges for GET only.
        let range = request.only(RANGE).filter(|_| {
            request.method() == Method::GET && validators.admits_range(request.headers(), now)
        });
        let file = Arc::new(file);
        let wanted = range.map_or(RangeRequest::Whole, |range| wanted(range, length));
        match wanted {
            RangeRequest::Unsatisfiable => {
                let all = HeaderValue::from_str(&format!("bytes */{length}"))?;
                base.insert(CONTENT_RANGE, all);
                Ok(Self::new(StatusCode::RANGE_NOT_SATISFIABLE).with_fields(base))
            }
            RangeRequest::Parts(parts) if parts.len() > 1 => {
                let (boundary, pieces) = multipart(&file, &parts, length, media_type);
                let multipart = format!("multipart/byteranges; boundary={boundary}");
                base.insert(CONTENT_TYPE, HeaderValue::from_str(&multipart)?);
                let content = ResponseBody::Pieces(pieces);
                Ok(Self::with(StatusCode::PARTIAL_CONTENT, content).with_fields(base))
            }
            one => {
                base.insert(CONTENT_TYPE, HeaderValue::from_str(media_type)?);
                let (status, range) = match one {
                    RangeRequest::Parts(parts) => {
                        let range = parts.into_iter().next().unwrap_or(0..length);
                        let place = HeaderValue::from_str(&content_range(&range, length))?;
                        base.insert(CONTENT_RANGE, place);
                        (StatusCode::PARTIAL_CONTENT, range)
                    }
                    _ => (StatusCode::OK, 0..length),
                };
                let content = ResponseBody::Pieces(vec![Segment::File(file, range)]);
                Ok(Self::with(status, content).with_fields(base))
            }
        }
    }

    fn with_fields(mut self, fields: HeaderMap) -> Self {
        self.headers.extend(fields);
        self
    }
}

impl Validators {
    fn of(metadata: &Metadata, now: SystemTime) -> Self {
        let (seconds, nanos) = (metadata.mtime(), metadata.mtime_nsec());
        let modified = match u64::try_from(seconds) {
            Ok(seconds) => UNIX_EPOCH.checked_add(Duration::from_secs(seconds)),
            // HTTP has no date before 1970.
            Err(_) => None,
        };
        Self {
            // A replacement file can have the same length and modification time. The inode and the
            // change time, which no application can set, tell the two files apart.
            etag: format!(
                "\"{seconds:x}.{nanos:x}-{:x}-{:x}-{:x}.{:x}\"",
                metadata.len(),
                metadata.ino(),
                metadata.ctime(),
                metadata.ctime_nsec()
            ),
            // RFC 9110, 8.8.2.1: the date must not be later than the response's.
            modified: modified.unwrap_or(UNIX_EPOCH).min(whole_second(now)),
        }
    }
}

fn whole_second(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

fn content_range(range: &Range<u64>, length: u64) -> String {
    format!("bytes {}-{}/{length}", range.start, range.end - 1)
}

/// RFC 9110, 14.6.
fn multipart(
    file: &Arc<File>,
    parts: &[Range<u64>],
    length: u64,
    media_type: &str,
) -> (String, Vec<Segment>) {
    // The boundary is random, so that the author of the file cannot have predicted it.
    let random = || RandomState::new().build_hasher().finish();
    let boundary = format!("{:016x}{:016x}", random(), random());
    let mut pieces = Vec::with_capacity(2 * parts.len() + 1);
    for (n, range) in parts.iter().enumerate() {
        let begin = if n == 0 { "" } else { "\r\n" };
        let place = content_range(range, length);
        let head = format!(
            "{begin}--{boundary}\r\nContent-Type: {media_type}\r\nContent-Range: {place}\r\n\r\n"
        );
        pieces.push(Segment::Memory(Bytes::from(head)));
        pieces.push(Segment::File(file.clone(), range.clone()));
    }
    pieces.push(Segment::Memory(Bytes::from(format!(
        "\r\n--{boundary}--\r\n"
    ))));
    (boundary, pieces)
}
