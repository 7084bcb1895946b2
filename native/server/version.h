// The version that --version of both programs prints.
#pragma once

#define QUERN_VERSION "0.1.0"
