// placeholder
import BatonModel
struct CleaningRun: Sendable {}
