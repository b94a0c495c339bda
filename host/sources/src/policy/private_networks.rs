//! Names that lead into private networks: a server must not be made to ask its own neighbours
//! (server-side request forgery).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::Policy;

/// A resolver of names that leaves out addresses which an allowed name must not lead to.
///
/// The client connects to the addresses that were checked here, so a name cannot change its mind in
/// between. Addresses in URLs are not resolved, and need an entry of their own in the policy.
pub(crate) struct Resolver {
    /// The policy with the allowed names and the leave for private networks.
    pub(crate) policy: Arc<Policy>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = Arc::clone(&self.policy);
        Box::pin(async move {
            let name = name.as_str();
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name, 0)).await?.collect();
            // Every URL was compared with the policy before: another name is that of the system's
            // proxy.
            if policy.private_networks || !policy.names_host(name) {
                return Ok(Box::new(found.into_iter()) as Addrs);
            }
            let public: Vec<SocketAddr> =
                found.into_iter().filter(|address| is_public(address.ip())).collect();
            match public.is_empty() {
                false => Ok(Box::new(public.into_iter()) as Addrs),
                true => Err(format!(
                    "`{name}` is in a private network, which needs `private_networks = true`"
                )
                .into()),
            }
        })
    }
}

/// True for an address of the internet at large, rather than one of this machine or of private and
/// special networks.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

/// The same for IPv4: addresses that are neither private, local, shared or multicast, nor reserved
/// or for documentation.
fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, ..] = v4.octets();
    // 100.64.0.0/10 is shared by providers and clouds, 192.0.0.0/24 and 198.18.0.0/15 are for
    // networks.
    let shared = a == 100 && (64..128).contains(&b);
    let special = (a == 198 && (18..20).contains(&b)) || v4.octets()[..3] == [192, 0, 0];
    !(a == 0
        || a >= 240
        || shared
        || special
        || v4.is_private()
        || v4.is_loopback()
        || v4.is_link_local()
        || v4.is_multicast()
        || v4.is_documentation())
}

/// The same for IPv6. An address that carries one of IPv4 is as public as that.
fn is_public_v6(v6: Ipv6Addr) -> bool {
    let segments = v6.segments();
    let embedded = match segments {
        // NAT64 and 6to4 carry an IPv4 address.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => Some((high, low)),
        _ => v6.to_ipv4().map(|v4| {
            let [a, b, c, d] = v4.octets();
            (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
        }),
    };
    if let Some((high, low)) = embedded {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        return is_public_v4(Ipv4Addr::new(a, b, c, d));
    }
    // 2001::/23 is for protocols, Teredo's embedded IPv4 and benchmarks among them; 2001:db8::/32
    // and 3fff::/20 are for documentation.
    let special = match segments {
        [0x2001, second, ..] => second < 0x200 || second == 0xdb8,
        [0x3fff, second, ..] => second < 0x1000,
        _ => false,
    };
    // 2000::/3 is what is given out; the rest is local, multicast or nobody's.
    segments[0] & 0xe000 == 0x2000 && !special
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_known_in_every_spelling() {
        let public = |text: &str| is_public(text.parse().unwrap());
        for address in [
            "1.1.1.1",
            "100.128.0.1",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "64:ff9b::101:101",
        ] {
            assert!(public(address), "{address}");
        }
        for address in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "100::1",
            "2001::7f00:1",
            "2001:0:4136:e378:8000:63bf:80ff:fffe",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "2001:1ff::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "3fff:fff::1",
            "5f00::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
        ] {
            assert!(!public(address), "{address}");
        }
    }
}
