package transport

import (
	"errors"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lowerEffort is the DSCP of traffic that yields to all other (RFC 8622), as the
	// byte of the IP header.
	lowerEffort = 1 << 2
	// bulkPriority is TC_PRIO_BULK: the last band of the kernel's own queues.
	bulkPriority = 2
	// unsentMost is how much the kernel takes before it can send it. What waits there
	// can no more be paced, and a change of the limit would reach it late.
	unsentMost = 256 << 10

	keepAliveIdle  = 15 * time.Second
	keepAliveCount = 4
)

// background marks a connection's packets as those that routers and queues let wait
// while anything else is to be sent, so that a first copy of a large volume never
// makes a lease late. It goes for this end's packets, so both ends call it. A
// connection without a socket of the kernel is left as it is.
//
// There is no TCP_USER_TIMEOUT: it would also cut off a receiver whose pool is
// committing and that takes nothing for minutes. Whoever waits for an answer on the
// connection bounds its wait, and the keepalives find a peer that is gone while
// nothing is under way.
func background(conn net.Conn) error {
	if tcp, ok := conn.(*net.TCPConn); ok {
		err := tcp.SetKeepAliveConfig(net.KeepAliveConfig{
			Enable: true, Idle: keepAliveIdle, Interval: keepAliveIdle, Count: keepAliveCount,
		})
		if err != nil {
			return err
		}
	}
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = markBackground(int(fd)) })
	return errors.Join(err, failed)
}

func markBackground(fd int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || domain != unix.AF_INET && domain != unix.AF_INET6 {
		return err
	}
	// An IPv6 socket carries IPv4 too, when the peer's address is a mapped one.
	err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, lowerEffort)
	if domain == unix.AF_INET6 {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, lowerEffort))
	}
	// After IP_TOS, which sets a priority of its own.
	return errors.Join(err,
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, bulkPriority),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentMost))
}
