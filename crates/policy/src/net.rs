//! IP networks in CIDR notation (RFC 4632, RFC 4291 2.3), and lists of them that allow or deny.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `10.0.0.0/8`, `2001:db8::/32`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Net {
    address: IpAddr,
    bits: u8,
}

/// Why a text is not a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNet {
    /// Not an address and a prefix length.
    #[error("'{0}' is not a network: write it like 10.0.0.0/8 or 2001:db8::/32")]
    Form(String),
    /// Bits are set behind the prefix: most likely another length is meant.
    #[error("'{given}' has bits set behind its prefix: write '{meant}'")]
    HostBits {
        /// As written.
        given: String,
        /// The network it is in.
        meant: Net,
    },
}

/// The address itself, not the IPv6 form of an IPv4 one.
pub fn plain(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

impl Net {
    /// Whether an address is in it. IPv4 addresses in their IPv6 form are IPv4 addresses.
    pub fn contains(&self, address: IpAddr) -> bool {
        masked(plain(address), self.bits) == Some(self.address)
    }
}

/// The address with everything behind the prefix cleared; `None` when it has not so many bits.
fn masked(address: IpAddr, bits: u8) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(a) => {
            let gone = 32u32.checked_sub(bits.into())?;
            Ipv4Addr::from_bits(a.to_bits().checked_shr(gone).unwrap_or(0).checked_shl(gone).unwrap_or(0)).into()
        }
        IpAddr::V6(a) => {
            let gone = 128u32.checked_sub(bits.into())?;
            Ipv6Addr::from_bits(a.to_bits().checked_shr(gone).unwrap_or(0).checked_shl(gone).unwrap_or(0)).into()
        }
    })
}

impl FromStr for Net {
    type Err = InvalidNet;

    fn from_str(s: &str) -> Result<Self, InvalidNet> {
        let form = || InvalidNet::Form(s.to_owned());
        let (address, bits) = s.split_once('/').map_or((s, None), |(a, b)| (a, Some(b)));
        let address = plain(address.parse().map_err(|_| form())?);
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(b) if b.bytes().all(|c| c.is_ascii_digit()) => b.parse().map_err(|_| form())?,
            Some(_) => return Err(form()),
        };
        let network = masked(address, bits).ok_or_else(form)?;
        let net = Net { address: network, bits };
        if network == address { Ok(net) } else { Err(InvalidNet::HostBits { given: s.to_owned(), meant: net }) }
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl From<Net> for String {
    fn from(n: Net) -> String {
        n.to_string()
    }
}

impl TryFrom<String> for Net {
    type Error = InvalidNet;
    fn try_from(s: String) -> Result<Self, InvalidNet> {
        s.parse()
    }
}

/// Whom to let in: nobody that `deny` names; when `allow` names anybody, only those.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nets {
    /// Only these, unless empty.
    pub allow: Vec<Net>,
    /// Never these.
    pub deny: Vec<Net>,
}

impl Nets {
    /// Whether an address may come in.
    pub fn admit(&self, address: IpAddr) -> bool {
        !self.deny.iter().any(|n| n.contains(address))
            && (self.allow.is_empty() || self.allow.iter().any(|n| n.contains(address)))
    }

    /// Whether everybody may.
    pub fn is_open(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    #[test]
    fn a_network_holds_what_shares_its_prefix() {
        let n: Net = "10.1.0.0/16".parse().unwrap();
        assert!(n.contains(ip("10.1.255.3")) && n.contains(ip("::ffff:10.1.0.9")));
        assert!(!n.contains(ip("10.2.0.0")) && !n.contains(ip("::a01:1")));
        let n: Net = "2001:db8::/33".parse().unwrap();
        assert!(n.contains(ip("2001:db8:7fff::1")) && !n.contains(ip("2001:db8:8000::1")));
        let all: Net = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains(ip("255.1.2.3")) && !all.contains(ip("::1")));
        assert!("::1".parse::<Net>().unwrap().contains(ip("::1")));
    }

    #[test]
    fn a_text_that_is_no_network_is_refused_with_what_to_write() {
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/", "10.0.0.0/+8", "localhost"] {
            assert!(matches!(bad.parse::<Net>(), Err(InvalidNet::Form(_))), "{bad}");
        }
        let e = "10.1.2.3/8".parse::<Net>().unwrap_err();
        assert_eq!(e.to_string(), "'10.1.2.3/8' has bits set behind its prefix: write '10.0.0.0/8'");
    }

    #[test]
    fn deny_is_stronger_than_allow_and_no_list_admits_all() {
        let nets = |allow: &[&str], deny: &[&str]| Nets {
            allow: allow.iter().map(|n| n.parse().unwrap()).collect(),
            deny: deny.iter().map(|n| n.parse().unwrap()).collect(),
        };
        assert!(nets(&[], &[]).admit(ip("1.2.3.4")) && nets(&[], &[]).is_open());
        let n = nets(&["10.0.0.0/8"], &["10.9.0.0/16"]);
        assert!(n.admit(ip("10.1.1.1")) && !n.admit(ip("10.9.1.1")) && !n.admit(ip("11.0.0.1")));
        assert!(nets(&[], &["10.0.0.0/8"]).admit(ip("11.0.0.1")));
    }
}
