// Headers of the system libidn2, by which BatonDNS turns U-labels into A-labels.
#include <idn2.h>
