#include "app/command.h"

int main(int argc, char** argv) { return gimli::app::run_command(argc, argv); }
