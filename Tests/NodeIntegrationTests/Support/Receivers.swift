// Other people's servers as receivers: smtp-sink, Postfix, Exim, OpenSMTPD, and Dovecot's LMTP.
import Foundation
import Testing

@testable import baton_bench

/// A server that stores what it gets as files in a folder (Maildir).
final class Receiver {
    let port: Int
    /// The Unix socket that it takes mail on as well, if it does.
    let socket: String?
    private let mail: String
    private let program: Program

    private init(port: Int, mail: String, program: Program, socket: String? = nil) throws {
        self.port = port
        self.socket = socket
        self.mail = mail
        self.program = program
        try eventually("the receiver; its output:\n\(program.output)") {
            if program.hasEnded() { throw Waited(description: "the receiver ended: \(program.output)") }
            return Ports.greets(port)
        }
    }

    /// Bytes of all stored messages.
    var messages: [[UInt8]] {
        var found: [[UInt8]] = []
        guard let walk = FileManager.default.enumerator(atPath: mail) else { return [] }
        for case let name as String in walk where name.contains("new/") {
            if let bytes = FileManager.default.contents(atPath: "\(mail)/\(name)") { found.append(Array(bytes)) }
        }
        return found
    }

    func wait(for count: Int) throws -> [[UInt8]] {
        try eventually("\(count) messages stored, there are \(messages.count); \(program.output)") {
            messages.count >= count
        }
        return messages
    }

    /// Postfix's smtp-sink, which writes each message to a file behind lines about its envelope.
    static func smtpSink(_ folder: TestFolder) throws -> Receiver {
        let port = try Ports.free()
        let mail = try folder.make("smtp-sink")
        let new = try folder.make("smtp-sink/new", permissions: 0o777)
        let user = Places.isRoot ? ["-u", "nobody"] : []
        let program = try Program(
            ["smtp-sink"] + user + ["-d", "\(new)/message.", "127.0.0.1:\(port)", "100"],
            log: "\(folder.path)/smtp-sink.log")
        return try Receiver(port: port, mail: mail, program: program)
    }

    private static func inPeers(_ folder: TestFolder, _ name: String, _ command: [String]) throws -> Program {
        guard let peers = Places.peers else {
            throw Waited(description: "Exim, OpenSMTPD and Dovecot are not there: .ci/peers unpacks them")
        }
        return try Program(
            ["\(Places.root)/.ci/in-peers", peers, "\(folder.path)/\(name)-scratch"] + command,
            log: "\(folder.path)/\(name).log")
    }

    static func exim(_ folder: TestFolder) throws -> Receiver {
        let port = try Ports.free()
        let mail = try folder.make("exim-mail", permissions: 0o777)
        let spool = try folder.make("exim-spool", permissions: 0o777)
        let file = try folder.write(
            "exim.conf",
            """
            primary_hostname = exim.example
            spool_directory = \(spool)
            log_file_path = \(spool)/%slog
            pid_file_path = \(spool)/pid
            daemon_smtp_ports = \(port)
            local_interfaces = 127.0.0.1
            tls_advertise_hosts =
            host_lookup =
            acl_smtp_rcpt = check_rcpt
            keep_environment =
            chunking_advertise_hosts = *
            begin acl
            check_rcpt:
              accept
            begin routers
            all:
              driver = accept
              transport = file
            begin transports
            file:
              driver = appendfile
              directory = \(mail)
              maildir_format
              create_directory
              user = Debian-exim
            begin retry
            * * F,1h,1m

            """)
        return try Receiver(
            port: port, mail: mail, program: inPeers(folder, "exim", ["exim4", "-C", file, "-bdf", "-q1h"]))
    }

    static func openSMTPD(_ folder: TestFolder) throws -> Receiver {
        let port = try Ports.free()
        let mail = try folder.make("opensmtpd-mail", permissions: 0o777)
        let file = try folder.write(
            "smtpd.conf",
            """
            table all { "@" = nobody }
            listen on 127.0.0.1 port \(port)
            action "keep" maildir "\(mail)" virtual <all>
            match from any for any action "keep"

            """)
        return try Receiver(port: port, mail: mail, program: inPeers(folder, "opensmtpd", ["smtpd", "-d", "-f", file]))
    }

    static func dovecot(_ folder: TestFolder) throws -> Receiver {
        let port = try Ports.free()
        let mail = try folder.make("dovecot-mail", permissions: 0o777)
        let socket = "\(folder.path)/lmtp.sock"
        let file = try folder.write(
            "dovecot.conf",
            """
            base_dir = /run/dovecot
            state_dir = /run/dovecot
            log_path = \(folder.path)/dovecot.messages
            protocols = lmtp
            ssl = no
            mail_location = maildir:\(mail)/%n
            first_valid_uid = 1
            userdb {
              driver = static
              args = uid=nobody gid=nogroup home=\(mail)/%n allow_all_users=yes
            }
            passdb {
              driver = static
              args = nopassword=y
            }
            service lmtp {
              inet_listener lmtp {
                address = 127.0.0.1
                port = \(port)
              }
              unix_listener \(socket) {
                mode = 0666
              }
            }

            """)
        return try Receiver(
            port: port, mail: mail, program: inPeers(folder, "dovecot", ["dovecot", "-F", "-c", file]), socket: socket)
    }

    /// An instance of its own of the installed Postfix, which delivers to a Maildir.
    static func postfix(_ folder: TestFolder) throws -> Receiver {
        let port = try Ports.free()
        let base = try folder.make("postfix")
        for name in ["etc", "spool", "data"] { _ = try folder.make("postfix/\(name)") }
        let mail = try folder.make("postfix-mail", permissions: 0o777)
        if let owner = getpwnam("postfix") { chown("\(base)/data", owner.pointee.pw_uid, owner.pointee.pw_gid) }
        try folder.write(
            "postfix/etc/main.cf",
            """
            compatibility_level = 3.6
            config_directory = \(base)/etc
            queue_directory = \(base)/spool
            data_directory = \(base)/data
            daemon_directory = /usr/lib/postfix/sbin
            command_directory = /usr/sbin
            maillog_file_prefixes = \(folder.path)
            maillog_file = \(base)/maillog
            mail_owner = postfix
            setgid_group = postdrop
            myhostname = postfix.example
            inet_interfaces = 127.0.0.1
            inet_protocols = ipv4
            mynetworks = 127.0.0.0/8
            mydestination =
            alias_maps =
            alias_database =
            virtual_mailbox_domains = static:all
            virtual_mailbox_maps = static:all/
            virtual_mailbox_base = \(mail)
            virtual_uid_maps = static:65534
            virtual_gid_maps = static:65534
            virtual_minimum_uid = 1
            smtpd_relay_restrictions = permit_mynetworks, reject
            smtpd_peername_lookup = no
            smtpd_reject_unlisted_recipient = no
            smtp_dns_support_level = disabled

            """)
        try folder.write(
            "postfix/etc/master.cf",
            """
            127.0.0.1:\(port) inet n - n - - smtpd
            pickup unix n - n 60 1 pickup
            cleanup unix n - n - 0 cleanup
            qmgr unix n - n 300 1 qmgr
            tlsmgr unix - - n 1000? 1 tlsmgr
            rewrite unix - - n - - trivial-rewrite
            bounce unix - - n - 0 bounce
            defer unix - - n - 0 bounce
            trace unix - - n - 0 bounce
            proxymap unix - - n - - proxymap
            smtp unix - - n - - smtp
            relay unix - - n - - smtp
            error unix - - n - - error
            retry unix - - n - - error
            virtual unix - n n - - virtual
            anvil unix - - n - 1 anvil
            postlog unix-dgram n - n - 1 postlogd

            """)
        let program = try Program(["postfix", "-c", "\(base)/etc", "start-fg"], log: "\(folder.path)/postfix.log")
        return try Receiver(port: port, mail: mail, program: program)
    }
}
