// The version that the banner, `baton version`, `/health` and metrics name.

package enum BatonVersion {
    package static let current = "0.1.0"
}
