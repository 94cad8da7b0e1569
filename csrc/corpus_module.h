// What module.cpp takes from corpus_module.cpp and prose_module.cpp.

#pragma once

#include <pybind11/pybind11.h>

void bind_corpus(pybind11::module_& m);
void bind_prose(pybind11::module_& m);
