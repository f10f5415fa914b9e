#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# benchmarks/all_reduce_report.sh CSV FOLDER: what benchmarks/run all_reduce measured as a table in Markdown, and as
# FOLDER/all_reduce_RANKS_ranks.svg and .png where there is gnuplot. Called by benchmarks/run.
#
# A cell, and a point, is the median over repetitions; its range goes from the lowest first quartile of a repetition to
# the highest third one.
set -euo pipefail
csv=$1
folder=$2

# What is compared, in the order of the columns: side:variant|name|gnuplot's line.
series=(
  'cpp:copy|one memcpy|lc rgb "#9a9a9a" dt 2 pt 1'
  'cpp:rewrite|one pass in place|lc rgb "#5a5a5a" dt 3 pt 2'
  'cpp:shm|pardl, shared memory|lc rgb "#c02020" lw 2.5 pt 7'
  'mpi:mpi|Open MPI|lc rgb "#2060c0" pt 5'
  'cpp:ring-shm|pardl'\''s ring over shared memory|lc rgb "#e08030" pt 6'
  'cpp:gloo|pardl, Gloo|lc rgb "#208040" pt 9'
  'cpp:ring-gloo|pardl'\''s ring over Gloo|lc rgb "#70b060" pt 8'
  'python:gloo|torch.distributed, Gloo|lc rgb "#8040a0" pt 13'
)

# points RANKS SIDE:VARIANT: bytes, size, microseconds, lowest, highest; a line for each size.
points() {
  awk -F, -v ranks="$1" -v wanted="$2" '
    function median(list, n,   i, j, t) {
      for (i = 2; i <= n; ++i) for (j = i; j > 1 && list[j - 1] > list[j]; --j) { t = list[j]; list[j] = list[j - 1]; list[j - 1] = t }
      return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
    }
    $1 == "all_reduce" && $4 == ranks {
      variant = $3; which = ""
      if (variant ~ /-q[13]$/) { which = substr(variant, length(variant) - 1); variant = substr(variant, 1, length(variant) - 3) }
      parts = split(variant, part, "-")
      size = part[parts]
      if ($2 ":" substr(variant, 1, length(variant) - length(size) - 1) != wanted) next
      bytes = (size + 0) * (size ~ /MiB/ ? 1048576 : 1024)
      if (which == "") { if (!count[bytes]++) { order[++sizes] = bytes; name[bytes] = size }; value[bytes, count[bytes]] = $5 }
      if (which == "q1" && (!(bytes in low) || $5 + 0 < low[bytes])) low[bytes] = $5 + 0
      if (which == "q3" && (!(bytes in high) || $5 + 0 > high[bytes])) high[bytes] = $5 + 0
    }
    END {
      for (s = 1; s <= sizes; ++s) {
        b = order[s]
        for (k = 1; k <= count[b]; ++k) list[k] = value[b, k] + 0
        printf "%d %s %.6g %.6g %.6g\n", b, name[b], median(list, count[b]), low[b], high[b]
      }
    }' "$csv"
}

# table RANKS: of the files that hold the points.
table() {
  local entry name
  printf '\n%s\n' "ranks $1: microseconds of an all-reduce, median (quartiles)"
  for entry in "${measured[@]}"; do
    name=${entry#*|}
    printf '%s|%s\n' "$work/${entry%%|*}" "${name%%|*}"
  done | awk -F'|' '
    function figure(us) { return us + 0 < 100 ? sprintf("%.3g", us) : sprintf("%.0f", us) }
    { titles = titles " | " $2; rule = rule "|---"; columns = NR
      while ((getline line < $1) > 0) {
        split(line, p, " ")
        if (!(p[1] in row)) { row[p[1]] = p[2]; sub(/[KM]/, " &", row[p[1]]); order[++rows] = p[1] }
        cell[p[1], NR] = figure(p[3]) " (" figure(p[4]) " to " figure(p[5]) ")"
      } }
    END {
      print "| size" titles " |"; print "|---" rule "|"
      for (r = 1; r <= rows; ++r) {
        text = "| " row[order[r]]
        for (c = 1; c <= columns; ++c) text = text " | " cell[order[r], c]
        print text " |"
      }
    }'
}

# picture RANKS: GB/s over bytes, both logarithmic.
picture() {
  local ranks=$1 target=$folder/all_reduce_$1_ranks entry rest plots=() tics list terminal
  tics=$(cat "$work"/*:* | sort -n -u -k1,1 | awk '!seen[$1]++ { sub(/iB/, "", $2); printf "%s\"%s\" %s", sep, $2, $1; sep = ", " }')
  for entry in "${measured[@]}"; do
    rest=${entry#*|}
    plots+=("'$work/${entry%%|*}' using 1:(\$1/\$3/1000):(\$1/\$5/1000):(\$1/\$4/1000) with yerrorlines ${rest#*|} title \"${rest%%|*}\"")
  done
  list=$(printf ', %s' "${plots[@]}")
  for terminal in "svg size 1000,640 enhanced background 'white' font 'sans,14'" "pngcairo size 1000,640 enhanced font 'sans,12'"; do
    gnuplot <<GNUPLOT || return 1
set terminal $terminal
set output "$target.${terminal%%[ c]*}"
set title "All-reduce of float32 in place, $ranks ranks on one host"
set xlabel "bytes of the tensor"
set ylabel "GB/s (bytes of the tensor over time)"
set logscale xy
set xrange [] noextend
set offsets graph 0.03, graph 0.03, 0, 0
set xtics ($tics)
set format y "%g"
set grid xtics ytics lc rgb "#d8d8d8"
set key bottom right reverse Left samplen 3
set pointsize 0.9
plot ${list:2}
GNUPLOT
  done
  echo "picture: $target.svg, $target.png"
}

mapfile -t worlds < <(awk -F, '$1 == "all_reduce" { print $4 }' "$csv" | sort -n -u)
for ranks in "${worlds[@]}"; do
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  measured=()
  for entry in "${series[@]}"; do
    points "$ranks" "${entry%%|*}" >"$work/${entry%%|*}"
    if [ -s "$work/${entry%%|*}" ]; then measured+=("$entry"); else rm "$work/${entry%%|*}"; fi
  done
  [ ${#measured[@]} -gt 0 ] || continue
  table "$ranks"
  if command -v gnuplot >/dev/null; then
    picture "$ranks" || echo "no picture: gnuplot failed"
  else
    echo "no picture: gnuplot is not installed (Debian: gnuplot-nox)"
  fi
  rm -rf "$work"
done
