//! smoltcp on a TUN device behind a small server: echo (7), discard (9), chargen (19), HTTP (80).
//!
//!     smoltcp-server DEVICE ADDRESS [spin]
//!
//! smoltcp has no listener and no backlog: a socket listens for one connection, and a SYN beyond the listening sockets is answered by RST. So
//! there are as many sockets as connections can be open, and a socket in TIME-WAIT is taken for the next one at once.
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Medium, TunTapInterface, wait};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, Ipv4Address};
use std::os::fd::AsRawFd;

const ANSWER_KEEP: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello, world\n";
const ANSWER_LAST: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 13\r\n\r\nHello, world\n";
const GATEWAY: Ipv4Address = Ipv4Address::new(198, 51, 100, 1);
/// Port, sockets, bytes of each buffer.
const SERVICES: [(u16, usize, usize); 4] = [(7, 2, 65536), (9, 2, 1 << 20), (19, 2, 1 << 20), (80, 128, 65536)];

fn serve(port: u16, s: &mut Socket, bulk: &[u8]) {
    match port {
        19 => while s.can_send() && s.send_slice(bulk).unwrap_or(0) > 0 {},
        9 => while s.can_recv() {
            let _ = s.recv(|data| (data.len(), ()));
        },
        _ if !(s.can_recv() && s.can_send()) => {}
        7 => {
            let data = s.recv(|data| (data.len(), data.to_vec())).unwrap_or_default();
            let _ = s.send_slice(&data);
        }
        _ => {
            let data = s.recv(|data| (data.len(), data.to_vec())).unwrap_or_default();
            if data.windows(5).any(|w| w == b"close") {
                let _ = s.send_slice(ANSWER_LAST);
                s.close();
            } else {
                for _ in 0..data.windows(4).filter(|w| w == b"\r\n\r\n").count() {
                    let _ = s.send_slice(ANSWER_KEEP);
                }
            }
        }
    }
    if s.may_send() && !s.may_recv() {
        s.close();
    }
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let address: Ipv4Address = words[2].parse().expect("an IPv4 address");
    let spin = words.get(3).is_some_and(|w| w == "spin");
    let mut device = TunTapInterface::new(&words[1], Medium::Ip).expect("the TUN device");
    let fd = device.as_raw_fd();
    let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut device, Instant::now());
    interface.update_ip_addrs(|all| all.push(IpCidr::new(IpAddress::Ipv4(address), 24)).expect("room for an address"));
    interface.routes_mut().add_default_ipv4_route(GATEWAY).expect("room for a route");
    let mut set = SocketSet::new(vec![]);
    let mut all: Vec<(u16, SocketHandle)> = vec![];
    for (port, sockets, bytes) in SERVICES {
        for _ in 0..sockets {
            let buffer = || SocketBuffer::new(vec![0; bytes]);
            all.push((port, set.add(Socket::new(buffer(), buffer()))));
        }
    }
    let bulk = vec![b'x'; 1 << 18];
    println!("ready");
    loop {
        interface.poll(Instant::now(), &mut device, &mut set);
        for (port, handle) in &all {
            let s = set.get_mut::<Socket>(*handle);
            if s.state() == State::TimeWait {
                s.abort();
            }
            if s.is_open() {
                serve(*port, s, &bulk);
            } else {
                s.listen(*port).expect("a closed socket");
                s.set_nagle_enabled(false);
            }
        }
        // What a socket got to send goes out here. A changed socket: packets were read too, and are served before sleeping.
        if interface.poll(Instant::now(), &mut device, &mut set) == PollResult::None && !spin {
            let _ = wait(fd, interface.poll_delay(Instant::now(), &set));
        }
    }
}
