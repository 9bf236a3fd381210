//! The header of the PROXY protocol: what a proxy in front of a relay says first, so that the relay learns who calls.
//!
//! Version 1 is a line of text, version 2 is binary, as in <https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt>.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The longest header that is taken, with all that version 2 may have behind the addresses.
pub(crate) const MAX_LEN: usize = 1024;
/// The longest line of version 1, with its end.
const MAX_LINE_LEN: usize = 107;
/// What comes before the addresses in version 2.
const FIXED_LEN: usize = 16;
/// How version 1 begins.
const V1: &[u8] = b"PROXY ";
/// How version 2 begins: nothing that any other protocol begins with.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes that it has. What comes behind them is the caller's.
    pub(crate) len: usize,
    /// Who calls. `None`: the proxy itself, as when it looks whether the relay is there (LOCAL, UNKNOWN), or somebody
    /// without an address of TCP.
    pub(crate) source: Option<SocketAddr>,
}

/// Why there is no header, and will be none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// It is something else from the first.
    Missing,
    /// It begins like one and is none, or is too long.
    Malformed,
}

/// The header at the beginning of all that has come so far; `None`: it is not yet complete, all of this is part of it.
///
/// # Errors
/// Whatever comes next, it will be no header.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Header>, Wrong> {
    if is_begun(bytes, V2) {
        parse_binary(bytes)
    } else if is_begun(bytes, V1) {
        parse_line(bytes)
    } else {
        Err(Wrong::Missing)
    }
}

fn is_begun(bytes: &[u8], beginning: &[u8]) -> bool {
    bytes.iter().zip(beginning).all(|(a, b)| a == b)
}

fn parse_binary(bytes: &[u8]) -> Result<Option<Header>, Wrong> {
    let Some([.., command, family, high, low]) = bytes.first_chunk::<FIXED_LEN>() else { return Ok(None) };
    let len = FIXED_LEN + usize::from(u16::from_be_bytes([*high, *low]));
    let addresses_len = match (command, family) {
        // Two of IPv4, or of IPv6, and their ports.
        (0x21, 0x11) => 12,
        (0x21, 0x21) => 36,
        // LOCAL, whatever else it says; and callers of no family, of UDP, of Unix sockets.
        (0x20, _) | (0x21, 0x00 | 0x12 | 0x22 | 0x31 | 0x32) => 0,
        _ => return Err(Wrong::Malformed),
    };
    if !(FIXED_LEN + addresses_len..=MAX_LEN).contains(&len) {
        return Err(Wrong::Malformed);
    }
    let Some(addresses) = bytes.get(FIXED_LEN..len) else { return Ok(None) };
    let source = match addresses_len {
        0 => None,
        12 => first_of_binary::<4>(addresses),
        _ => first_of_binary::<16>(addresses),
    };
    Ok(Some(Header { len, source }))
}

/// The source of two addresses of `N` bytes each, their ports behind them.
fn first_of_binary<const N: usize>(addresses: &[u8]) -> Option<SocketAddr>
where
    IpAddr: From<[u8; N]>,
{
    let ip = *addresses.first_chunk::<N>()?;
    let port = *addresses.get(2 * N..)?.first_chunk()?;
    Some(SocketAddr::new(ip.into(), u16::from_be_bytes(port)))
}

fn parse_line(bytes: &[u8]) -> Result<Option<Header>, Wrong> {
    let bytes = bytes.get(..MAX_LINE_LEN).unwrap_or(bytes);
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() < MAX_LINE_LEN { Ok(None) } else { Err(Wrong::Malformed) };
    };
    let line = std::str::from_utf8(&bytes[..end]).ok().and_then(|line| line.strip_suffix('\r'));
    let fields: Vec<&str> = line.ok_or(Wrong::Malformed)?.split(' ').skip(1).collect();
    let source = match fields[..] {
        // What follows does not matter.
        ["UNKNOWN", ..] => None,
        ["TCP4", from, to, port, to_port] => Some(first_of_line::<Ipv4Addr>([from, to], [port, to_port])?),
        ["TCP6", from, to, port, to_port] => Some(first_of_line::<Ipv6Addr>([from, to], [port, to_port])?),
        _ => return Err(Wrong::Malformed),
    };
    Ok(Some(Header { len: end + 1, source }))
}

fn first_of_line<A: FromStr + Into<IpAddr>>(ips: [&str; 2], ports: [&str; 2]) -> Result<SocketAddr, Wrong> {
    let parsed = |(ip, port): (&str, &str)| {
        // `parse` alone would take +1 and 01 too.
        let is_plain =
            port.bytes().all(|byte| byte.is_ascii_digit()) && (port == "0" || !port.starts_with('0'));
        let port = port.parse().ok().filter(|_| is_plain)?;
        Some(SocketAddr::new(ip.parse::<A>().ok()?.into(), port))
    };
    let [from, to] = [(ips[0], ports[0]), (ips[1], ports[1])].map(parsed);
    to.and(from).ok_or(Wrong::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const V6: &str = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";

    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [V2, &[command, family], &len, rest].concat()
    }

    /// 192.0.2.1:40000 to 198.51.100.2:443.
    const OF_V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0x9c, 0x40, 1, 187];

    fn of_v6() -> Vec<u8> {
        let ip = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        [&ip("2001:db8::1")[..], &ip("2001:db8::2"), &[0x9c, 0x40, 1, 187]].concat()
    }

    fn good() -> Vec<(Vec<u8>, Option<&'static str>)> {
        let line = |text: String| text.into_bytes();
        vec![
            (line("PROXY TCP4 192.0.2.1 192.0.2.11 56324 443\r\n".into()), Some("192.0.2.1:56324")),
            (
                line("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n".into()),
                Some("255.255.255.255:65535"),
            ),
            (line("PROXY TCP4 192.0.2.1 192.0.2.11 0 0\r\n".into()), Some("192.0.2.1:0")),
            (line("PROXY TCP6 2001:db8::1 ::1 40000 443\r\n".into()), Some("[2001:db8::1]:40000")),
            (
                line(format!("PROXY TCP6 {V6} {V6} 65535 65535\r\n")),
                Some("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
            ),
            (line("PROXY UNKNOWN\r\n".into()), None),
            (line(format!("PROXY UNKNOWN {V6} {V6} 65535 65535\r\n")), None),
            (binary(0x21, 0x11, &OF_V4), Some("192.0.2.1:40000")),
            // With what may come behind the addresses: here a NOOP of 3 bytes, and as much as fits.
            (binary(0x21, 0x11, &[&OF_V4[..], &[4, 0, 3, 1, 2, 3]].concat()), Some("192.0.2.1:40000")),
            (binary(0x21, 0x11, &[&OF_V4[..], &[7; MAX_LEN - 28]].concat()), Some("192.0.2.1:40000")),
            (binary(0x21, 0x21, &of_v6()), Some("[2001:db8::1]:40000")),
            (binary(0x20, 0x00, &[]), None),
            (binary(0x20, 0x11, &OF_V4), None),
            (binary(0x20, 0xff, &[1, 2, 3]), None),
            (binary(0x21, 0x00, &[]), None),
            (binary(0x21, 0x12, &OF_V4), None),
            (binary(0x21, 0x31, &[7; 216]), None),
        ]
    }

    #[test]
    fn a_header_is_whole_at_its_last_byte_and_what_follows_is_not_part_of_it() {
        for (bytes, source) in good() {
            for len in 0..bytes.len() {
                assert_eq!(parse(&bytes[..len]), Ok(None), "{len} of {bytes:?}");
            }
            let source = source.map(|source| source.parse().unwrap());
            let expected = Ok(Some(Header { len: bytes.len(), source }));
            for behind in [&b""[..], b"\x16\x03\x01", b"\r\n", &[0; 4096]] {
                assert_eq!(parse(&[&bytes[..], behind].concat()), expected, "{bytes:?}");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_seen_at_once() {
        for bytes in [
            &b"\x16\x03\x01"[..],
            b"\0\x01\0\0",
            b"\r\n\r\r",
            b"GET",
            b"PROXY\r\n",
            b"PROXY2",
            b"\r\n\r\n\0\r\nQUIT\r",
        ] {
            assert_eq!(parse(bytes), Err(Wrong::Missing), "{bytes:?}");
        }
    }

    #[test]
    fn what_begins_like_one_and_is_none_is_malformed() {
        for line in [
            "TCP4 192.0.2.1 192.0.2.2 1 2\n",
            "TCP4 192.0.2.1 192.0.2.2 1\r\n",
            "TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
            "TCP4 192.0.2.1  192.0.2.2 1 2\r\n",
            "TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            "TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
            "TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
            "TCP4 192.0.2.1 192.0.2 1 2\r\n",
            "TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            "TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            "TCP6 fe80::1%1 ::1 1 2\r\n",
            "UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "UNKNOWNS\r\n",
            " UNKNOWN\r\n",
            "\r\n",
            &"x".repeat(MAX_LINE_LEN - V1.len()),
            &format!("UNKNOWN {}\r\n", "x".repeat(MAX_LINE_LEN - 15)),
        ] {
            assert_eq!(parse(format!("PROXY {line}").as_bytes()), Err(Wrong::Malformed), "{line:?}");
        }
        let too_long = binary(0x21, 0x11, &[0; MAX_LEN - FIXED_LEN + 1]);
        for bytes in [
            binary(0x11, 0x11, &OF_V4),
            binary(0x22, 0x11, &OF_V4),
            binary(0x21, 0x10, &OF_V4),
            binary(0x21, 0x41, &OF_V4),
            binary(0x21, 0x11, &OF_V4[..11]),
            binary(0x21, 0x21, &OF_V4),
            too_long[..FIXED_LEN].to_vec(),
        ] {
            assert_eq!(parse(&bytes), Err(Wrong::Malformed), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_there_is_an_answer_before_the_longest_header_is_full(
            which in 0..20usize,
            at in 0..60usize,
            with in any::<u8>(),
            random in prop::collection::vec(any::<u8>(), MAX_LEN..MAX_LEN + 20),
        ) {
            let mut bytes = good().get(which).map(|(bytes, _)| bytes.clone()).unwrap_or_default();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = with;
            }
            bytes.extend(random);
            let whole = parse(&bytes[..MAX_LEN]);
            prop_assert_ne!(whole, Ok(None));
            // It is the same however much has come, and never more than has come.
            for len in 0..MAX_LEN {
                match parse(&bytes[..len]) {
                    Ok(None) => {}
                    Ok(Some(header)) => {
                        prop_assert!(header.len <= len);
                        prop_assert_eq!(Ok(Some(header)), whole);
                    }
                    Err(wrong) => prop_assert_eq!(Err(wrong), whole),
                }
            }
        }
    }
}
