{{- define "nexent-observer.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "nexent-observer.selector" -}}
app.kubernetes.io/name: nexent-observer
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "nexent-observer.labels" -}}
{{ include "nexent-observer.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "nexent-observer.port" -}}
{{- .Values.config.listen | toString | splitList ":" | last | int -}}
{{- end -}}
