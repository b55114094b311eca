// Placeholder until the first test lands.
import Testing
