//! The validity of certificates, and warnings before it ends.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use yasna::tags::TAG_GENERALIZEDTIME;
use yasna::{ASN1Result, BERReader, Tag, parse_der};

/// The time before the end of a certificate at which the warnings begin.
pub(super) const NOTICE: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// The time between two warnings about a certificate in use.
pub(super) const AGAIN: Duration = Duration::from_secs(24 * 60 * 60);

/// The validity of a server's certificate; see [`TlsIdentity::dates`](super::TlsIdentity::dates).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CertificateDates {
    /// The file of the certificate.
    pub path: PathBuf,
    /// The time from which the certificate is valid.
    pub not_before: SystemTime,
    /// The time until which the certificate is valid.
    pub not_after: SystemTime,
}

impl CertificateDates {
    /// Returns `None` if the bytes are not a certificate.
    pub(super) fn of(path: &Path, certificate: &CertificateDer<'_>) -> Option<Self> {
        let (not_before, not_after) = validity(certificate).ok()?;
        Some(Self {
            path: path.into(),
            not_before: not_before.into(),
            not_after: not_after.into(),
        })
    }

    /// Returns a warning for the operator, if there is one at this time.
    fn concern(&self, now: SystemTime) -> Option<String> {
        let path = self.path.display();
        let date = |time: SystemTime| OffsetDateTime::from(time).date();
        let days = |time: Duration| time.as_secs() / (24 * 60 * 60);
        if let Ok(left) = self.not_before.duration_since(now)
            && !left.is_zero()
        {
            return Some(format!(
                "the certificate {path} is not valid before {}: clients refuse it; look at the clock, or \
                 use another certificate",
                date(self.not_before)
            ));
        }
        let end = date(self.not_after);
        match self.not_after.duration_since(now) {
            Err(_) => Some(format!(
                "the certificate {path} has expired on {end}: clients refuse it; renew it, and reload"
            )),
            Ok(left) if left <= NOTICE => Some(format!(
                "the certificate {path} expires on {end}, in {} days: renew it, and reload",
                days(left)
            )),
            Ok(_) => None,
        }
    }
}

/// Logs a warning for each certificate that needs one now.
pub(super) fn warn(all: &[CertificateDates]) {
    let now = SystemTime::now();
    for concern in all.iter().filter_map(|one| one.concern(now)) {
        tracing::warn!("{concern}");
    }
}

/// Reads the validity from the DER form of a certificate: RFC 5280, 4.1.
#[allow(
    clippy::redundant_closure_for_method_calls,
    reason = "a method is not general enough in its lifetimes"
)]
fn validity(certificate: &[u8]) -> ASN1Result<(OffsetDateTime, OffsetDateTime)> {
    parse_der(certificate, |reader| {
        reader.read_sequence(|reader| {
            let dates = reader.next().read_sequence(|reader| {
                // The version, the serial number, the algorithm, the issuer.
                reader.read_optional(|reader| {
                    reader.read_tagged(Tag::context(0), |reader| reader.read_der())
                })?;
                for _ in 0..3 {
                    reader.next().read_der()?;
                }
                let dates = reader
                    .next()
                    .read_sequence(|reader| Ok((time(reader.next())?, time(reader.next())?)))?;
                // The subject, its key, extensions.
                while reader.read_optional(|reader| reader.read_der())?.is_some() {}
                Ok(dates)
            })?;
            // The signature.
            while reader.read_optional(|reader| reader.read_der())?.is_some() {}
            Ok(dates)
        })
    })
}

fn time(reader: BERReader<'_, '_>) -> ASN1Result<OffsetDateTime> {
    if reader.lookahead_tag()? == TAG_GENERALIZEDTIME {
        return Ok(*reader.read_generalized_time()?.datetime());
    }
    Ok(*reader.read_utctime()?.datetime())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    #[test]
    fn dates_are_those_of_the_certificate() {
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000);
        // Before and after 2050 times are written in two ways.
        for years in [1, 100] {
            let end = begin + 365 * years * DAY;
            let mut params = rcgen::CertificateParams::new(vec!["a".into()]).unwrap();
            params.not_before = begin.into();
            params.not_after = end.into();
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap();
            let dates = CertificateDates::of("a.pem".as_ref(), certificate.der()).unwrap();
            assert_eq!((dates.not_before, dates.not_after), (begin, end));
        }
        for no_certificate in [&b""[..], b"x", b"\x30\x03\x02\x01\x01"] {
            let der = CertificateDer::from(no_certificate.to_vec());
            assert_eq!(CertificateDates::of("a.pem".as_ref(), &der), None);
        }
    }

    #[test]
    fn an_end_is_told_two_weeks_before() {
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let dates = CertificateDates {
            path: "a.pem".into(),
            not_before: begin,
            not_after: begin + 100 * DAY,
        };
        for (day, says) in [
            (0, None),
            (85, None),
            (86, Some("expires on 2024-02-22, in 14 days")),
            (99, Some("in 1 days")),
            (101, Some("has expired on 2024-02-22")),
        ] {
            let concern = dates.concern(begin + day * DAY);
            match says {
                None => assert_eq!(concern, None, "{day}"),
                Some(says) => assert!(concern.unwrap().contains(says), "{day}"),
            }
        }
        let before = dates.concern(begin - DAY).unwrap();
        assert!(before.contains("not valid before 2023-11-14"), "{before}");
    }
}
