//! Tests of valid, invalid and random headers.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::header::{ProxyHeader, ProxyHeaderError};
use super::length::{Extent, SIGNATURE, extent};
use crate::Address;

/// Header that HAProxy 2.6 sends with `send-proxy-v2 proxy-v2-options crc32c,unique-id`.
const WITH_CHECKSUM: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x23\x7f\0\0\x01\x7f\0\0\x01\xd9\x3e\x91\xcf\
    \x03\0\x04\xf2\x64\x29\x5b\x05\0\x0d7F000001:D93E";

/// The same for a client that has connected by a Unix socket, with an empty identifier.
const LOCAL_WITH_CHECKSUM: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\x0a\x03\0\x04\x82\x63\x74\xb8\x05\0\0";

fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &length, block].concat()
}

fn unix_block(source: &[u8], destination: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 216];
    block[..source.len()].copy_from_slice(source);
    block[108..108 + destination.len()].copy_from_slice(destination);
    block
}

/// Headers of all kinds, with their addresses.
fn samples() -> Vec<(Vec<u8>, &'static str)> {
    let v4 = [203, 0, 113, 9, 198, 51, 100, 1, 0x0f, 0xa0, 0, 80];
    let mut v6 = [0; 36];
    (v6[15], v6[31], v6[33], v6[35]) = (1, 2, 3, 4);
    let with_extension = [&v4[..], &[0xe0, 0, 2, 1, 2]].concat();
    let worst = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let line = |text: &str| text.as_bytes().to_vec();
    vec![
        (
            line("PROXY TCP4 203.0.113.9 198.51.100.1 4000 80\r\n"),
            "203.0.113.9:4000 198.51.100.1:80",
        ),
        (
            line("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n"),
            "255.255.255.255:65535 255.255.255.255:65535",
        ),
        (
            line("PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n"),
            "0.0.0.0:0 0.0.0.0:0",
        ),
        (
            line("PROXY TCP6 2001:db8::1 ::1 4000 80\r\n"),
            "[2001:db8::1]:4000 [::1]:80",
        ),
        (line("PROXY UNKNOWN\r\n"), ""),
        (line("PROXY UNKNOWN what ever it is, and  more \0\r\n"), ""),
        (
            line(&format!("PROXY UNKNOWN {worst} {worst} 65535 65535\r\n")),
            "",
        ),
        (v2(0x21, 0x11, &v4), "203.0.113.9:4000 198.51.100.1:80"),
        (v2(0x21, 0x12, &v4), "203.0.113.9:4000 198.51.100.1:80"),
        (
            v2(0x21, 0x11, &with_extension),
            "203.0.113.9:4000 198.51.100.1:80",
        ),
        (v2(0x21, 0x21, &v6), "[::1]:3 [::2]:4"),
        (v2(0x21, 0x22, &v6), "[::1]:3 [::2]:4"),
        (
            v2(0x21, 0x31, &unix_block(b"/run/a", b"\0name")),
            "/run/a @name",
        ),
        (
            v2(0x21, 0x32, &unix_block(b"", b"/run/b")),
            "unnamed /run/b",
        ),
        // Headers without a client address: a check by the proxy itself, or an unknown client.
        (v2(0x20, 0x00, &[]), ""),
        (v2(0x20, 0x21, &[]), ""),
        (v2(0x20, 0x11, &v4), ""),
        (v2(0x20, 0x77, b"\x01"), ""),
        (v2(0x21, 0x00, &[]), ""),
        (v2(0x21, 0x00, b"guess"), ""),
        (v2(0x21, 0x01, &v4), ""),
        (v2(0x21, 0x10, &v4), ""),
        (v2(0x20, 0x00, &[0; 4096]), ""),
        (WITH_CHECKSUM.to_vec(), "127.0.0.1:55614 127.0.0.1:37327"),
        (LOCAL_WITH_CHECKSUM.to_vec(), ""),
    ]
}

fn proxy() -> Address {
    Address::Inet("127.0.0.1:1".parse().unwrap())
}

fn decode(bytes: &[u8]) -> Result<ProxyHeader, ProxyHeaderError> {
    match extent(bytes)? {
        Extent::Whole(length) if length == bytes.len() => ProxyHeader::decode(bytes, &proxy()),
        other => panic!("{other:?} of {}", bytes.escape_ascii()),
    }
}

#[test]
fn valid_headers_are_decoded() {
    for (bytes, expected) in samples() {
        let header = decode(&bytes).unwrap_or_else(|e| panic!("{}: {e}", bytes.escape_ascii()));
        let addresses = header.client().zip(header.destination());
        let decoded = addresses.map_or(String::new(), |(client, to)| format!("{client} {to}"));
        assert_eq!(decoded, expected, "{}", bytes.escape_ascii());
        assert_eq!(header.proxy(), &proxy());
    }
}

#[test]
fn header_end_is_found_at_every_split() {
    for (bytes, _) in samples() {
        for n in 1..bytes.len() {
            let Ok(Extent::Partial(least)) = extent(&bytes[..n]) else {
                panic!("{n} bytes of {}", bytes.escape_ascii());
            };
            assert!(n < least && least <= bytes.len());
        }
        for more in ["\r", "\n", "\r\n", "PROXY ", "hello"] {
            let glued = [&bytes, more.as_bytes()].concat();
            assert_eq!(extent(&glued), Ok(Extent::Whole(bytes.len())));
        }
    }
}

#[test]
fn invalid_lines_are_rejected() {
    use ProxyHeaderError::{Malformed, Missing, TooLong};
    let too_long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
    assert_eq!(too_long.len(), 108);
    for (line, error) in [
        ("GET / HTTP/1.1\r\n", Missing),
        ("proxy TCP4 1.1.1.1 1.1.1.1 1 1\r\n", Missing),
        ("PROXYTCP4 1.1.1.1 1.1.1.1 1 1\r\n", Missing),
        ("\r\n\r\nPROXY UNKNOWN\r\n", Missing),
        ("PROXY \r\n", Malformed),
        ("PROXY TCP4\r\n", Malformed),
        ("PROXY UNKNOWNS\r\n", Malformed),
        ("PROXY  TCP4 1.1.1.1 1.1.1.1 1 1\r\n", Malformed),
        ("PROXY TCP4 1.1.1.1 1.1.1.1  1 1\r\n", Malformed),
        ("PROXY TCP4 1.1.1.1 1.1.1.1 1 1 \r\n", Malformed),
        ("PROXY TCP4 1.1.1.1 1.1.1.1 1\r\n", Malformed),
        ("PROXY TCP4 1.1.1.1 1.1.1.1 1 65536\r\n", Malformed),
        ("PROXY TCP4 1.1.1.1 1.1.1.1 01 1\r\n", Malformed),
        ("PROXY TCP4 1.1.1.1 1.1.1.1 +1 1\r\n", Malformed),
        ("PROXY TCP4 1.1.1.1 1.1.1.1 -1 1\r\n", Malformed),
        ("PROXY TCP4 1.1.1.01 1.1.1.1 1 1\r\n", Malformed),
        ("PROXY TCP4 1.1.1 1.1.1.1 1 1\r\n", Malformed),
        ("PROXY TCP4 ::1 ::1 1 1\r\n", Malformed),
        ("PROXY TCP6 1.1.1.1 1.1.1.1 1 1\r\n", Malformed),
        ("PROXY UDP4 1.1.1.1 1.1.1.1 1 1\r\n", Malformed),
        ("PROXY tcp4 1.1.1.1 1.1.1.1 1 1\r\n", Malformed),
        ("PROXY TCP4 1.1.1.1 1.1.1.1 1 1\n", Malformed),
        ("PROXY TCP4 1.1.1.1 1.1.1.1 1 1\rx\n", Malformed),
        ("PROXY TCP4 1.1.1.1 1.1.1.1 \u{661} 1\r\n", Malformed),
        (&too_long, TooLong),
    ] {
        assert_eq!(decode(line.as_bytes()).unwrap_err(), error, "{line:?}");
    }
    let not_ascii = b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1\xff\r\n";
    assert_eq!(decode(not_ascii).unwrap_err(), Malformed);
}

#[test]
fn invalid_blocks_are_rejected() {
    use ProxyHeaderError::{Malformed, TooLong};
    let v4 = [1; 12];
    let cut_short = [&v4[..], &[0xe0, 0, 9, 1]].concat();
    let no_length = [&v4[..], &[0xe0, 0]].concat();
    for (bytes, error) in [
        (v2(0x11, 0x11, &v4), Malformed),
        (v2(0x22, 0x11, &v4), Malformed),
        (v2(0x21, 0x41, &v4), Malformed),
        (v2(0x21, 0x13, &v4), Malformed),
        (v2(0x21, 0x11, &v4[1..]), Malformed),
        (v2(0x21, 0x21, &v4), Malformed),
        (v2(0x21, 0x31, &v4), Malformed),
        (v2(0x21, 0x11, &cut_short), Malformed),
        (v2(0x21, 0x11, &no_length), Malformed),
        (v2(0x20, 0x00, &[0; 4097]), TooLong),
        (v2(0x21, 0x11, &[0; 65535]), TooLong),
    ] {
        let shown = bytes[12..].escape_ascii();
        assert_eq!(decode(&bytes).unwrap_err(), error, "{shown}");
    }
    // The length is rejected as soon as it has arrived, before the rest of the header.
    let huge = v2(0x21, 0x11, &[0; 65535]);
    assert_eq!(extent(&huge[..16]), Err(TooLong));
}

#[test]
fn extensions_are_decoded_and_the_checksum_is_verified() {
    let header = decode(WITH_CHECKSUM).unwrap();
    let kinds: Vec<_> = header.extensions().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [ProxyHeader::CRC32C, ProxyHeader::UNIQUE_ID]);
    let id = header.extension(ProxyHeader::UNIQUE_ID);
    assert_eq!(id, Some(&b"7F000001:D93E"[..]));
    assert_eq!(header.extension(ProxyHeader::ALPN), None);
    let local = decode(LOCAL_WITH_CHECKSUM).unwrap();
    assert_eq!(local.extension(ProxyHeader::UNIQUE_ID), Some(&b""[..]));
    // The checksum covers every byte of the addresses and values.
    for at in (16..28).chain(31..35).chain(38..WITH_CHECKSUM.len()) {
        let mut damaged = WITH_CHECKSUM.to_vec();
        damaged[at] ^= 0x10;
        let error = decode(&damaged).unwrap_err();
        assert_eq!(error, ProxyHeaderError::Checksum, "byte {at}");
    }
    // A checksum that is not four bytes long is wrong, too, even without addresses.
    for value in [&[][..], &[0; 3], &[0; 5]] {
        let length = u8::try_from(value.len()).unwrap();
        let block = [&[ProxyHeader::CRC32C, 0, length], value].concat();
        let bytes = v2(0x20, 0, &block);
        assert_eq!(decode(&bytes).unwrap_err(), ProxyHeaderError::Checksum);
    }
}

/// Generates two addresses of one family.
fn pair() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    let four = any::<(SocketAddrV4, SocketAddrV4)>().prop_map(|(a, b)| (a.into(), b.into()));
    let six = any::<(SocketAddrV6, SocketAddrV6)>().prop_map(|(a, b)| (a.into(), b.into()));
    prop_oneof![four, six]
}

/// Generates damaged headers and random bytes.
fn anything() -> impl Strategy<Value = Vec<u8>> {
    let samples: Vec<_> = samples().into_iter().map(|(bytes, _)| bytes).collect();
    let damage = vec((any::<Index>(), any::<u8>()), 0..4);
    let damaged = (
        select(samples),
        damage,
        any::<Index>(),
        vec(any::<u8>(), 0..20),
    )
        .prop_map(|(mut bytes, damage, cut, more)| {
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if more.len() % 3 == 0 {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            bytes.extend(more);
            bytes
        });
    prop_oneof![8 => damaged, 1 => vec(any::<u8>(), 0..300)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// The result does not depend on how the bytes are split. It never extends beyond the header,
    /// and every byte before its end belongs to the header.
    #[test]
    fn result_does_not_depend_on_the_split(bytes in anything()) {
        let at_once = extent(&bytes);
        let mut step_by_step = Ok(Extent::Partial(1));
        for n in 1..=bytes.len() {
            step_by_step = extent(&bytes[..n]);
            match step_by_step {
                Ok(Extent::Partial(least)) => prop_assert!(least > n && least <= 16 + 4096),
                Ok(Extent::Whole(length)) => {
                    prop_assert_eq!(length, n);
                    break;
                }
                Err(_) => break,
            }
        }
        if !bytes.is_empty() {
            prop_assert_eq!(at_once, step_by_step);
        }
        if let Ok(Extent::Whole(length)) = at_once
            && let Ok(header) = ProxyHeader::decode(&bytes[..length], &proxy())
        {
            let values = header.extensions().map(|(_, value)| 3 + value.len()).sum::<usize>();
            prop_assert!(values <= length);
        }
    }

    /// Decoding returns the encoded addresses.
    #[test]
    fn addresses_survive_a_round_trip((source, to) in pair()) {
        let (source_ip, ip) = (source.ip(), to.ip());
        let (family, name) = if source.is_ipv4() { (0x11, "TCP4") } else { (0x21, "TCP6") };
        let (from, port) = (source.port(), to.port());
        let line = format!("PROXY {name} {source_ip} {ip} {from} {port}\r\n");
        let octets = |ip| match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let ports = [from.to_be_bytes(), port.to_be_bytes()].concat();
        let block = v2(0x21, family, &[octets(source_ip), octets(ip), ports].concat());
        for bytes in [line.into_bytes(), block] {
            let header = decode(&bytes).unwrap();
            // The flow label and the zone are not transmitted.
            prop_assert_eq!(header.client().unwrap().to_string(), Address::Inet((source_ip, from).into()).to_string());
            prop_assert_eq!(header.destination().unwrap().to_string(), Address::Inet((ip, port).into()).to_string());
        }
    }
}
