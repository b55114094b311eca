// Headers of the system libunbound that BatonDNS wraps.
#include <unbound.h>
