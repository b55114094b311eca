// Stand-in until the command line lands: `baton serve [--config FILE]` alone.
import BatonNode
import Glibc

@main struct Baton {
    static func main() async {
        let words = CommandLine.arguments
        do {
            var configuration = ConfigurationLoader.embeddedDefaults()
            if let at = words.firstIndex(of: "--config"), at + 1 < words.count {
                configuration = try ConfigurationLoader.load(path: words[at + 1])
            }
            exit(await NodeRunner.run(configuration: configuration))
        } catch {
            print("\(error)")
            exit(78)
        }
    }
}
