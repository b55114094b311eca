// Placeholder until the benchmark command lands.
@main struct BatonBench { static func main() {} }
