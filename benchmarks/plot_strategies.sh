#!/usr/bin/env bash
# Draws the file that `strategies_benchmark --table FILE` wrote: plot_strategies.sh FILE OUT.png
set -euo pipefail
(($# == 2)) || { echo "usage: plot_strategies.sh FILE OUT.png" >&2; exit 2; }
table=$1 out=$2
[[ -s $table ]] || { echo "plot_strategies.sh: $table is not a file with rows" >&2; exit 1; }

strategies=$(cut -f2 "$table" | awk '!seen[$0]++' | sed "s/.*/'&'/" | paste -sd, -)
gnuplot 2> >(grep -v 'no valid points' >&2) <<EOF
set terminal pngcairo size 1500,1800 font "sans,11"
set output '$out'
set datafile separator "\t"
set datafile missing NaN
array names = [$strategies]
title_of(p) = p eq 'logistic' ? 'logistic regression, SGD with momentum' : p eq 'mlp' ? 'MLP, Adam' : p eq 'conv4' ? 'conv4 with batch norm, SGD with momentum' : 'transformer with dropout, Adam'
set multiplot layout 5,2 margins 0.07,0.98,-0.09,0.975 spacing 0.08,0.075
set logscale xy
set xlabel 'inner steps'
set xtics (1,4,16,64,256,1024)
set xrange [0.8:1300]
set format y '10^{%L}'
set grid lc rgb '#dddddd'
unset key
dashes(i) = i > 7 ? 2 : 1
do for [p in "logistic mlp conv4 transformer"] {
  do for [what in "seconds bytes"] {
    column_of = what eq 'seconds' ? 4 : 6
    set title sprintf('%s: %s', title_of(p), what eq 'seconds' ? 'seconds (least)' : 'peak bytes')
    plot for [i=1:|names|] '$table' using (strcol(1) eq p && strcol(2) eq names[i] ? column(3) : NaN):(column(column_of)) \\
      with linespoints lc i pt i ps 0.9 lw 1.5 dt dashes(i)
  }
}
unset title
unset tics
unset xlabel
unset border
unset grid
unset logscale
set xrange [0:1]
set yrange [0:1]
set key top center maxrows 7 samplen 3
plot for [i=1:|names|] NaN with linespoints lc i pt i ps 0.9 lw 1.5 dt dashes(i) title names[i] noenhanced
unset multiplot
EOF
