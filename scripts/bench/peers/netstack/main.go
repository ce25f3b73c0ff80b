// netstack: gVisor's TCP on a TUN device behind a small server: echo (7), discard (9), chargen (19), HTTP (80).
//
//	netstack -i DEVICE -a ADDRESS [-m BYTES]
//
// gVisor's fd-based link uses virtio_net_hdr on packet sockets only, so a TUN device gets neither GSO nor checksum offload.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const (
	echo, discard, chargen, http = 7, 9, 19, 80
	nic                          = 1
	mtu                          = 1500
)

var (
	answerKeep = []byte("HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello, world\n")
	answerLast = []byte("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 13\r\n\r\nHello, world\n")
)

// openTun attaches to the device, without offload whatever its last opener has set.
func openTun(name string) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return -1, err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return -1, err
	}
	return fd, unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0)
}

func serve(port int, conn net.Conn, size int) {
	defer conn.Close()
	buffer := make([]byte, size)
	for {
		if port == chargen {
			if _, err := conn.Write(buffer); err != nil {
				return
			}
			continue
		}
		n, err := conn.Read(buffer)
		if err != nil {
			return
		}
		in := buffer[:n]
		switch port {
		case echo:
			_, err = conn.Write(in)
		case http:
			if bytes.Contains(in, []byte("close")) {
				conn.Write(answerLast)
				return
			}
			_, err = conn.Write(bytes.Repeat(answerKeep, bytes.Count(in, []byte("\r\n\r\n"))))
		}
		if err != nil {
			return
		}
	}
}

func newStack(device string, address tcpip.Address) (*stack.Stack, error) {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	sack := tcpip.TCPSACKEnabled(true)
	s.SetTransportProtocolOption(tcp.ProtocolNumber, &sack)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: 1 << 20, Max: 8 << 20}
	s.SetTransportProtocolOption(tcp.ProtocolNumber, &receive)
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: 1 << 20, Max: 8 << 20}
	s.SetTransportProtocolOption(tcp.ProtocolNumber, &send)
	fd, err := openTun(device)
	if err != nil {
		return nil, err
	}
	link, err := fdbased.New(&fdbased.Options{FDs: []int{fd}, MTU: mtu})
	if err != nil {
		return nil, err
	}
	if e := s.CreateNIC(nic, link); e != nil {
		return nil, errors.New(e.String())
	}
	own := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: address.WithPrefix()}
	if e := s.AddProtocolAddress(nic, own, stack.AddressProperties{}); e != nil {
		return nil, errors.New(e.String())
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}})
	return s, nil
}

func main() {
	device := flag.String("i", "tun0", "TUN device")
	text := flag.String("a", "198.51.100.2", "address")
	size := flag.Int("m", 1<<16, "buffer of a connection's handler")
	flag.Parse()
	address := tcpip.AddrFromSlice(net.ParseIP(*text).To4())
	s, err := newStack(*device, address)
	if err != nil {
		log.Fatal(err)
	}
	for _, port := range []int{echo, discard, chargen, http} {
		listener, err := gonet.ListenTCP(s, tcpip.FullAddress{NIC: nic, Addr: address, Port: uint16(port)}, ipv4.ProtocolNumber)
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					log.Fatal(err)
				}
				go serve(port, conn, *size)
			}
		}()
	}
	fmt.Println("ready")
	select {}
}
