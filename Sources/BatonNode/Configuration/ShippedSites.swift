// The rules for large providers that come with Baton, after those of the configuration.
import BatonModel

/// Groups the domains of a provider under one site, so that they share connections and one metric label. They name no
/// limits: those are the operator's (`sites:` in the file comes first, and wins).
package enum ShippedSites {
    package static let rules: [SiteRule] = [
        rule("microsoft365", ["mail.protection.outlook.com", "mx.microsoft"]),
        rule("outlook", ["olc.protection.outlook.com"]),
        rule("google", ["google.com", "googlemail.com"]),
        rule("yahoo", ["yahoodns.net"]),
        rule("icloud", ["mail.icloud.com"]),
        rule("gmx", ["gmx.net", "web.de"]),
        rule("tonline", ["t-online.de"]),
        rule("orange", ["smtp-in.orange.fr"]),
        rule("comcast", ["mxge.comcast.net", "comcast.net"]),
        rule("mimecast", ["mimecast.com"]),
        rule("proofpoint", ["pphosted.com", "ppe-hosted.com"]),
    ]

    private static func rule(_ name: String, _ suffixes: [String]) -> SiteRule {
        var rule = SiteRule()
        rule.name = name
        rule.mxSuffixes = suffixes.map { Domain($0) }
        return rule
    }
}
