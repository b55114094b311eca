// Placeholder until the command lands.
@main struct Baton { static func main() {} }
