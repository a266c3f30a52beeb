//! Which IP addresses a guest's request may go to. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network, as `10.0.0.0/8`; an address alone is a network of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u32,
}

/// Why a text is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a network is an address, or its first address and how many bits it has in common, such as 10.0.0.0/8")]
pub struct NotANetwork;

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Network, NotANetwork> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NotANetwork)?;
        let all = width(address);
        let bits = match bits {
            None => all,
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => bits.parse().map_err(|_| NotANetwork)?,
            Some(_) => return Err(NotANetwork),
        };
        let network = Network { address, bits };
        // `10.0.0.1/8` may be meant as `10.0.0.1/32`: nothing is taken for what it is not.
        if bits > all || network.masked(address) != number(address) {
            return Err(NotANetwork);
        }
        Ok(network)
    }
}

impl Network {
    const fn v4(a: u8, b: u8, c: u8, d: u8, bits: u32) -> Network {
        Network { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), bits }
    }

    const fn v6(a: u16, b: u16, c: u16, bits: u32) -> Network {
        Network { address: IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0)), bits }
    }

    /// Whether the address is in it. An IPv4 address inside of an IPv6 one is not looked for.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && self.masked(address) == number(self.address)
    }

    fn masked(&self, address: IpAddr) -> u128 {
        let host_bits = width(address) - self.bits;
        number(address).checked_shr(host_bits).and_then(|kept| kept.checked_shl(host_bits)).unwrap_or(0)
    }
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// What is not the public internet, and what it is instead (the registries of special-purpose addresses of
/// IANA, and what clouds put elsewhere). The first that fits counts.
const REFUSED: &[(Network, &str)] = &[
    (Network::v4(0, 0, 0, 0, 8), "this network"),
    (Network::v4(10, 0, 0, 0, 8), "private"),
    (Network::v4(100, 64, 0, 0, 10), "carrier NAT"),
    (Network::v4(127, 0, 0, 0, 8), "loopback"),
    (Network::v4(168, 63, 129, 16, 32), "metadata"),
    (Network::v4(169, 254, 169, 254, 32), "metadata"),
    (Network::v4(169, 254, 0, 0, 16), "link-local"),
    (Network::v4(172, 16, 0, 0, 12), "private"),
    (Network::v4(192, 0, 0, 0, 24), "protocol assignments"),
    (Network::v4(192, 0, 2, 0, 24), "documentation"),
    (Network::v4(192, 88, 99, 0, 24), "6to4 relay"),
    (Network::v4(192, 168, 0, 0, 16), "private"),
    (Network::v4(198, 18, 0, 0, 15), "benchmarking"),
    (Network::v4(198, 51, 100, 0, 24), "documentation"),
    (Network::v4(203, 0, 113, 0, 24), "documentation"),
    (Network::v4(224, 0, 0, 0, 4), "multicast"),
    (Network::v4(240, 0, 0, 0, 4), "reserved"),
    (Network::v6(0, 0, 0, 96), "loopback, unspecified or embedded IPv4"),
    (Network { address: IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0)), bits: 96 }, "IPv4-mapped"),
    (Network { address: IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0)), bits: 96 }, "IPv4-translated"),
    (Network::v6(0x64, 0xff9b, 0, 96), "NAT64"),
    (Network::v6(0x64, 0xff9b, 1, 48), "NAT64"),
    (Network::v6(0x2001, 0, 0, 32), "Teredo"),
    (Network::v6(0x2001, 0, 0, 23), "protocol assignments"),
    (Network::v6(0x2001, 0xdb8, 0, 32), "documentation"),
    (Network::v6(0x2002, 0, 0, 16), "6to4"),
    (Network::v6(0x3fff, 0, 0, 20), "documentation"),
    (Network::v6(0xfc00, 0, 0, 7), "private"),
    (Network::v6(0xfe80, 0, 0, 10), "link-local"),
    (Network::v6(0xfec0, 0, 0, 10), "site-local"),
    (Network::v6(0xff00, 0, 0, 8), "multicast"),
];

/// All of IPv6 that is given out for the public internet.
const GLOBAL_UNICAST: Network = Network::v6(0x2000, 0, 0, 3);

/// What kind of address that is, where it is none of the public internet.
pub(super) fn refused(address: IpAddr) -> Option<&'static str> {
    if let Some((_, class)) = REFUSED.iter().find(|(network, _)| network.contains(address)) {
        return Some(class);
    }
    let IpAddr::V6(six) = address else { return None };
    if !GLOBAL_UNICAST.contains(address) {
        return Some("not given out");
    }
    // An IPv4 address in the last 32 bits, under any prefix (ISATAP, RFC 5214, section 6.1).
    let [.., high, low, _, _] = six.segments();
    (matches!(high, 0 | 0x200) && low == 0x5efe).then_some("ISATAP")
}

/// Whether a request may go there: to the public internet, and to what the operator allows.
pub(super) fn is_allowed(address: IpAddr, allowed: &[Network]) -> bool {
    refused(address).is_none() || allowed.iter().any(|network| network.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn every_class_from_its_first_to_its_last_address() {
        for (class, addresses) in [
            ("this network", &["0.0.0.0", "0.255.255.255"][..]),
            (
                "private",
                &["10.0.0.0", "10.255.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.0", "192.168.255.255"],
            ),
            ("private", &["fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fd00:ec2::254", "fd20:ce::254"]),
            ("carrier NAT", &["100.64.0.0", "100.127.255.255", "100.100.100.200"]),
            ("loopback", &["127.0.0.0", "127.0.0.1", "127.255.255.255"]),
            ("metadata", &["169.254.169.254", "168.63.129.16"]),
            (
                "link-local",
                &["169.254.0.0", "169.254.169.253", "169.254.170.2", "169.254.255.255", "fe80::", "febf::1"],
            ),
            ("protocol assignments", &["192.0.0.0", "192.0.0.192", "192.0.0.255", "2001:1::", "2001:1ff::1"]),
            ("documentation", &["192.0.2.1", "198.51.100.255", "203.0.113.0", "2001:db8::1", "3fff:fff::1"]),
            ("6to4 relay", &["192.88.99.1"]),
            ("benchmarking", &["198.18.0.0", "198.19.255.255"]),
            ("multicast", &["224.0.0.0", "239.255.255.255", "ff02::1", "ffff::"]),
            ("reserved", &["240.0.0.0", "255.255.255.255"]),
            ("loopback, unspecified or embedded IPv4", &["::", "::1", "::10.0.0.1", "::8.8.8.8"]),
            ("IPv4-mapped", &["::ffff:127.0.0.1", "::ffff:8.8.8.8"]),
            ("IPv4-translated", &["::ffff:0:8.8.8.8"]),
            ("NAT64", &["64:ff9b::127.0.0.1", "64:ff9b:1::1", "64:ff9b:1:ffff::10.0.0.1"]),
            ("Teredo", &["2001::1", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff"]),
            ("6to4", &["2002::1", "2002:7f00:1::", "2002:808:808::1"]),
            ("site-local", &["fec0::1", "feff::1"]),
            ("not given out", &["100::1", "1fff::1", "4000::1", "5f00::1", "fbff::1", "64:ff9b:2::1"]),
            ("ISATAP", &["2a00::5efe:10.0.0.1", "2a00:1:2:3:200:5efe:8.8.8.8"]),
        ] {
            for address in addresses {
                assert_eq!(refused(ip(address)), Some(class), "{address}");
                assert!(!is_allowed(ip(address), &[]), "{address}");
            }
        }
    }

    #[test]
    fn the_public_internet_up_to_its_neighbours() {
        for address in [
            "1.0.0.0",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "168.63.129.15",
            "168.63.129.17",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2000::",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2003::1",
            "2a00::1",
            "3ffe::1",
            "3fff:1000::1",
        ] {
            assert_eq!(refused(ip(address)), None, "{address}");
        }
    }

    #[test]
    fn an_operator_allows_networks() {
        let allowed: Vec<Network> = ["10.1.0.0/16", "127.0.0.1", "fd00::/8"].map(|text| text.parse().unwrap()).into();
        for good in ["10.1.0.0", "10.1.255.255", "127.0.0.1", "fd12::1", "8.8.8.8"] {
            assert!(is_allowed(ip(good), &allowed), "{good}");
        }
        for bad in ["10.0.255.255", "10.2.0.0", "127.0.0.2", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.1.0.1", "::1"] {
            assert!(!is_allowed(ip(bad), &allowed), "{bad}");
        }
        let all: Vec<Network> = ["0.0.0.0/0", "::/0"].map(|text| text.parse().unwrap()).into();
        assert!(is_allowed(ip("127.0.0.1"), &all) && is_allowed(ip("::1"), &all));
    }

    #[test]
    fn texts_of_networks() {
        for good in ["10.0.0.0/8", "10.0.0.1", "10.0.0.1/32", "0.0.0.0/0", "::/0", "fe80::/10", "::1/128"] {
            assert!(good.parse::<Network>().is_ok(), "{good}");
        }
        for bad in ["", "/", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "10.0/8", "::1/64", "::/129", "a"]
        {
            assert_eq!(bad.parse::<Network>(), Err(NotANetwork), "{bad}");
        }
    }
}
