#!/usr/bin/perl
# A service for the tests of traffic: one process a connection. perl-base is in every Debian image.
use strict;
use warnings;
use IO::Socket::INET;

$SIG{CHLD} = 'IGNORE';
my $port = shift // 8000;
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 256, ReuseAddr => 1)
    or die "listen: $!";
while (my $client = $server->accept) {
    my $pid = fork // die "fork: $!";
    if ($pid) { close $client; next; }
    close $server;
    serve($client);
    exit 0;
}

sub serve {
    my ($client) = @_;
    binmode $client;
    $client->autoflush(1);
    my ($head, %of) = ('');
    my $first = <$client> // return;
    while (defined(my $line = <$client>)) {
        $line =~ s/\r?\n$//;
        last if $line eq '';
        $head .= "$line\n";
        $of{lc $1} = $2 if $line =~ /^([^:]+):\s*(.*)$/;
    }
    my ($method, $path) = split / /, $first;
    if ($path =~ m{^/ws}) {
        # The key and its answer of RFC 6455, section 1.3.
        print $client "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            . "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        while (sysread $client, my $bytes, 65536) { print $client $bytes; }
    } elsif ($path =~ m{^/sse/(\d+)}) {
        print $client "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
        for my $n (1 .. $1) { print $client "data: $n\n\n"; sleep 1 if $n < $1; }
    } elsif ($path =~ m{^/hang}) {
        print $client "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nbegun\n";
        sleep 3600;
    } elsif ($path =~ m{^/reset}) {
        return;
    } else {
        my $body = '';
        read $client, $body, $of{'content-length'} if $of{'content-length'};
        my $answer = "$method $path\n$head\n$body";
        print $client "HTTP/1.1 200 OK\r\nX-Service: yes\r\nContent-Length: " . length($answer) . "\r\n\r\n$answer";
    }
}
