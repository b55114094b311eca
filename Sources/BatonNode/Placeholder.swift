// Placeholder until the module's first file lands.
import Hummingbird
import NIOPosix
import ServiceLifecycle
import Yams
