#include "app/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

#include "app/command.h"

namespace gimli::app {
namespace {

std::atomic<int> requests{0};
struct sigaction previous_int, previous_term;

void on_signal(int) {
  if (++requests > 1) _exit(kInterrupted);
}

}  // namespace

InterruptGuard::InterruptGuard() {
  requests = 0;
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, &previous_int);
  sigaction(SIGTERM, &action, &previous_term);
}

InterruptGuard::~InterruptGuard() {
  sigaction(SIGINT, &previous_int, nullptr);
  sigaction(SIGTERM, &previous_term, nullptr);
}

bool interrupted() { return requests > 0; }

}  // namespace gimli::app
