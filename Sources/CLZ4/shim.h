// Headers of the system liblz4 that BatonSpool wraps.
#include <lz4.h>
